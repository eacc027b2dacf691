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
    assert f"report: {tmp_path / 'out' / 'report.html'}" in printed.out
    assert ShardSet(tmp_path / "out").studies == ("one", "two")


def test_images_left_out_are_listed_and_past_max_bad_the_exit_code_is_not_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study(tmp_path / "in")
    (folder / "i2c0.tif").write_bytes(b"II*\0")
    words = ["ingest", str(folder), "--output", str(tmp_path / "out"), "--no-report"]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "study: NOT WRITTEN\n    LEFT OUT i2: " in printed.out
    assert "morphem: error: study 'study': 1 of 3 images cannot be used, more than 1 %" in printed.err
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert main([*words, "--max-bad", "34%"]) == 0
    assert "2 images, 4 planes (nucleus 2, actin 2)" in capsys.readouterr().out


def test_ctrl_c_says_that_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["ingest", str(write_study(tmp_path / "in")), "--output", str(tmp_path / "out"), "--no-report"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("morphem.ingest.parts.prepare", stop)
        assert main(words) == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
    assert main(words) == 0


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path / "in")
    before = sorted(tmp_path.rglob("*"))
    assert main(["ingest", str(folder), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "study" in capsys.readouterr().out


def test_names_of_channels_and_settings_of_the_source_are_taken(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "in")
    sheet = folder / "metadata.csv"
    sheet.write_text(sheet.read_text().replace("DNA", "my stain"))
    words = ["ingest", str(folder), "--output", str(tmp_path / "out"), "--no-report"]
    assert main([*words, "--channel", "my stain=rna", "--set", "study=study"]) == 0
    assert set(ShardSet(tmp_path / "out").table(["imaging.channel_type"]).column(0).to_pylist()) == {"rna", "actin"}


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
        (["{in}", "--clip", "9,1"], "percentiles"),
        (["{in}", "--clip", "a,b"], "allowed are two percentiles such as 0.1,99.9"),
        (["{in}", "--set", "studdy=a"], "did you mean 'study'"),
        (["{in}", "--channel", "w1=nukleus"], "nearest: 'nucleus'"),
        (["{in}", "--recipe", "none.yaml"], "none.yaml"),
        (["{in}", "--dask", "tcp://x:1", "--workers", "2"], "give one of the two"),
        (["{in}", "--max-pixels", "20"], "pass a larger --max-pixels"),
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


def test_a_second_run_with_other_settings_needs_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ingest", str(write_study(tmp_path / "in")), "--output", str(tmp_path / "out"), "--no-report"]
    assert main(words) == 0
    capsys.readouterr()
    assert main(words) == 0
    assert "study: is in the set already, made with the same settings" in capsys.readouterr().out
    assert main([*words, "--clip", "0,100"]) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert main([*words, "--clip", "0,100", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("word", "value"), [("--max-bad", "2"), ("--max-bad", "few"), ("--workers", "0"), ("--channel", "w1")]
)
def test_a_word_that_is_no_value_of_its_option_is_refused(
    word: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ingest", "x", "--output", "y", word, value])
    assert stop.value.code == 2
    assert f"'{value}' is not" in capsys.readouterr().err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ingest", "--help"])
    assert "morphem ingest my-study/ --output shards/" in capsys.readouterr().out
