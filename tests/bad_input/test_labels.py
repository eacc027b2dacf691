"""Labels that are missing."""

from pathlib import Path

import pytest

from tests.small_shards import image, write


def labelled(folder: Path, labels: list[str | None]) -> Path:
    write(folder, [image(f"i{n:02d}", well=f"B{n:02d}", seed=n, kind=label) for n, label in enumerate(labels)])
    return folder


def probe(data: Path) -> list[str]:
    return [
        "--trainer.callbacks+=LinearProbe",
        f"--trainer.callbacks.data={data}",
        "--trainer.callbacks.label=kind",
        "--trainer.callbacks.test_fraction=0.5",
    ]


@pytest.mark.slow
def test_missing_labels_are_left_out_and_said(command, shards, tmp_path, tiny_run, recwarn):
    data = labelled(tmp_path / "labelled", ["a", "b", None, "a", "b", "nan", "a", "b", "", "a", "b"])
    outcome = command("fit", "--config", tiny_run(root=str(shards)), *probe(data))
    assert outcome.code == 0, outcome.err
    said = outcome.out + outcome.err + "".join(str(warning.message) for warning in recwarn)
    assert "3 rows without the label 'kind'" in said


def test_a_label_column_without_a_label(refused, shards, tmp_path, tiny_run):
    data = labelled(tmp_path / "labelled", [None, None, "a", None])
    sentence = refused("fit", "--config", tiny_run(root=str(shards)), *probe(data))
    assert "kind" in sentence
