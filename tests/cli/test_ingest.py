from pathlib import Path

import numpy as np
import pytest
import tifffile

from morphem.cli import main
from morphem.data.shards import ShardSet
from tests.sources.sheets import counts, write_study


def test_studies_are_ingested_and_the_summary_says_what_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(write_study(tmp_path / name, study=name)) for name in ("one", "two")]
    assert main(["ingest", *folders, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert f"{tmp_path / 'out'}: wrote 6 images, 12 planes" in printed.out
    assert "one: 3 images, 6 planes (nucleus 3, actin 3)" in printed.out
    assert "labels: label" in printed.out
    assert "unknown: experiment.plate, " in printed.out
    assert f"next: morphem fit --config dino_boc.yaml --data.root {tmp_path / 'out'}" in printed.out
    assert "6/6" in printed.err
    assert ShardSet(tmp_path / "out").studies == ("one", "two")


def test_images_left_out_are_listed_and_the_exit_code_is_not_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study(tmp_path / "in")
    (folder / "i2c0.tif").unlink()
    assert main(["ingest", str(folder), "--output", str(tmp_path / "out")]) == 1
    assert "LEFT OUT i2: " in capsys.readouterr().out


def test_planes_without_signal_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path / "in")
    tifffile.imwrite(folder / "i0c1.tif", np.zeros((12, 16), np.uint16))
    assert main(["ingest", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert "1 plane without signal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing"], "There is no folder"),
        (["{in}", "--source", "shet"], "did you mean 'sheet'"),
        (["{in}", "--clip", "none"], "without clipping only uint8 can be kept"),
        (["{in}", "--clip", "9,1"], "two rising percentiles"),
    ],
)
def test_a_mistake_is_one_sentence_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    folder = write_study(tmp_path / "in")
    filled = [word.format(**{"in": folder}) for word in words]
    assert main(["ingest", *filled, "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "morphem: error: " in error
    assert sentence in error
    assert "Traceback" not in error


def test_the_clip_limits_are_those_asked_for(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "in", 1)
    assert main(["ingest", str(folder), "--output", str(tmp_path / "out"), "--clip", "0,100"]) == 0
    row = ShardSet(tmp_path / "out").table().to_pylist()[0]
    assert (row["clip_low"], row["clip_high"]) == (counts(0).min(), counts(0).max())


def test_a_second_run_needs_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ingest", str(write_study(tmp_path / "in")), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert main(words) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize("clip", ["1", "a,b", "1,2,3"])
def test_a_clip_that_is_not_two_numbers_is_refused(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ingest", "x", "--output", "y", "--clip", clip])
    assert "is not LOW,HIGH" in capsys.readouterr().err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ingest", "--help"])
    assert "morphem ingest my-study/ --output shards/" in capsys.readouterr().out
