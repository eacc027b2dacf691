"""`morphem models`: what it prints, what it writes, and how it refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

import morphem
from morphem.cli import main
from morphem.encoder import Encoder
from morphem.zoo import catalogue
from morphem.zoo.base import WebFile
from tests.zoo.conftest import own_cache, tiny_zoo  # noqa: F401
from tests.zoo.servers import Behaviour, serving
from tests.zoo.tiny_family import Tiny, write


class Run:
    """Runs the command and keeps what it prints."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: object, code: int = 0) -> str:
        found = main(["models", *map(str, words)])
        shown = self.capsys.readouterr()
        assert found == code, shown.err
        assert "Traceback" not in shown.err
        return shown.out if code == 0 else shown.err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


def test_the_list_of_all_records_fits_the_terminal_with_licence_and_channel_rule(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lines = run("list").splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].split() == ["name", "features", "licence", "from", "channels"]
    names = {line.split()[0] for line in lines if line and not line.startswith((" ", "*"))}
    assert set(catalogue.entries()) <= names
    openphenom = next(line for line in lines if line.startswith("openphenom"))
    assert "Recursion" in openphenom
    assert "any channels" in openphenom


@pytest.mark.usefixtures("tiny_zoo")
class TestWithASmallZoo:
    """Records of one small family."""

    def test_the_list_marks_licences_that_restrict_use(self, run: Run) -> None:
        out = run("list")
        assert next(line for line in out.splitlines() if "tiny-nc" in line).split()[2:4] == ["CC-BY-NC-4.0", "*"]
        assert "* restricts use" in out
        assert "4 records" in out

    def test_the_list_is_narrowed_by_a_word_and_to_open_licences(self, run: Run) -> None:
        assert "1 record\n" in run("list", "hand")
        assert "tiny-nc" not in run("list", "--open")
        assert "no record matches" in run("list", "nonsense")

    def test_show_prints_the_record(self, run: Run) -> None:
        out = run("show", "tiny-nc")
        for expected in (
            "licence      CC-BY-NC-4.0 (restricts use; to be accepted once: --accept-license)",
            "cite         Nobody et al. 2024",
            "file         https://example.org/nc.pth",
            "sha256       not published; that of the first download is remembered",
            "  scale=1.0  What the features are multiplied with",
        ):
            assert expected in out

    def test_show_says_where_a_file_by_hand_goes(self, run: Run, tiny_zoo: Path) -> None:  # noqa: F811
        assert f"put it at    {tiny_zoo}/tiny-hand/hand.pth" in " ".join(run("show", "tiny-hand").splitlines())

    def test_an_unknown_record_is_refused_with_the_nearest(self, run: Run) -> None:
        assert "No record 'tiny-hup'; did you mean 'tiny-hub'?" in run("show", "tiny-hup", code=1)

    def test_a_download_shows_the_licence_first_and_needs_a_word(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        write(tmp_path / "made.pth")
        behaviour = Behaviour((tmp_path / "made.pth").read_bytes())
        with serving(behaviour) as address:
            record = replace(Tiny.records[2], location=WebFile(f"{address}/nc.pth"))
            monkeypatch.setattr(Tiny, "records", (record,))
            assert main(["models", "download", "tiny-nc"]) == 1
            shown = run.capsys.readouterr()
            assert "tiny-nc: licence CC-BY-NC-4.0 (restricts use: read it before you go on)" in shown.out
            assert "--accept-license" in shown.err
            assert behaviour.requests == []
            out = run("download", "tiny-nc", "--accept-license")
            assert out.startswith("tiny-nc: licence CC-BY-NC-4.0")
            assert "sha256     " in out
            run("download", "tiny-nc")
            assert len(behaviour.requests) == 1

    def test_a_file_is_converted_to_a_folder_that_verifies(self, run: Run, tmp_path: Path) -> None:
        write(tmp_path / "theirs.pth")
        out = run("convert", tmp_path / "theirs.pth", "--output", tmp_path / "ours", "--record", "tiny-web")
        assert "golden.json (6 cases to verify it by)" in out
        run("verify", tmp_path / "ours")
        image = np.random.default_rng(0).integers(0, 256, (2, 20, 20), dtype=np.uint8)
        first, second = (morphem.load(tmp_path / name) for name in ("theirs.pth", "ours"))
        channels = ["nucleus", "actin"]
        assert np.array_equal(first.embed(image, channels).values, second.embed(image, channels).values)
        assert second.card["citation"] == "Nobody et al. 2024"

    def test_facts_are_read_as_numbers_and_refused_when_unknown(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scales: list[float] = []
        convert = Tiny.convert
        monkeypatch.setattr(Tiny, "convert", lambda self, file: (scales.append(self.scale), convert(self, file))[1])
        write(tmp_path / "a.pth")
        words = ("convert", tmp_path / "a.pth", "--output", tmp_path / "out", "--fact")
        run(*words, "scale=2.5")
        assert scales == [2.5]
        assert "did you mean 'scale'" in run(*words, "skale=2", code=1)
        assert "must have the form NAME=VALUE" in run(*words, "scale", code=1)

    def test_restricted_weights_are_not_pushed_and_nothing_is_written(self, run: Run, tmp_path: Path) -> None:
        write(tmp_path / "a.pth")
        words = ("export", tmp_path / "a.pth", "--output", tmp_path / "out", "--record", "tiny-nc")
        assert "morphem never mirrors such weights" in run(*words, "--push-to-hub", "me/theirs", code=1)
        assert not (tmp_path / "out").exists()

    def test_an_option_without_effect_is_refused(self, run: Run, tmp_path: Path) -> None:
        write(tmp_path / "a.pth")
        words = ("export", tmp_path / "a.pth", "--output", tmp_path / "out")
        assert "--private has no effect without --push-to-hub" in run(*words, "--private", code=1)
        assert "belong to --torch-export and --onnx" in run(*words, "--channels", "nucleus", code=1)

    @pytest.mark.parametrize(
        ("damage", "sentence"),
        [
            (lambda data: data[: len(data) // 2], "cannot be read"),
            (lambda data: b"<!DOCTYPE html><html>", "is a web page"),
            (lambda data: b"", "is empty"),
        ],
    )
    def test_a_damaged_file_is_refused_in_one_sentence(
        self, run: Run, tmp_path: Path, damage: object, sentence: str
    ) -> None:
        write(tmp_path / "a.pth")
        (tmp_path / "a.pth").write_bytes(damage((tmp_path / "a.pth").read_bytes()))  # type: ignore[operator]
        message = run("convert", tmp_path / "a.pth", "--output", tmp_path / "out", code=1)
        assert sentence in message
        assert message.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_a_wrong_model_for_the_checkpoint_is_refused_in_one_sentence(self, run: Run, tmp_path: Path) -> None:
        torch.save({"weights": torch.zeros(2)}, tmp_path / "a.pth")
        words = ("convert", tmp_path / "a.pth", "--output", tmp_path / "out")
        assert "is of no family that morphem knows" in run(*words, code=1)
        assert "is no tiny encoder" in run(*words, "--family", "tiny", code=1)


def test_our_own_encoder_is_exported_with_a_licence(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    Encoder.tiny().save_pretrained(tmp_path / "run" / "encoder", card={"method": "dino"})
    out = run("export", tmp_path / "run", "--output", tmp_path / "mine", "--license", "mit", "--name", "mine")
    assert f"next       morphem models verify {tmp_path}/mine" in out
    assert "license: mit" in (tmp_path / "mine" / "README.md").read_text()
    assert run("verify", "--quiet", tmp_path / "mine").startswith("mine: ok, 12 outputs compared")


def test_every_subcommand_has_help_with_an_example(run: Run) -> None:
    for name in ("list", "show", "download", "convert", "verify", "export"):
        with pytest.raises(SystemExit) as done:
            main(["models", name, "--help"])
        assert done.value.code == 0
        assert f"example: morphem models {name} " in run.capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_exported_with_its_recipe_and_verifies(tiny_run: Callable[..., str], run: Run, tmp_path: Path) -> None:
    summary = "    - class_path: GracefulStop\n    - class_path: RunSummary"
    config = tiny_run(**{"    - class_path: GracefulStop": summary})
    words = ["fit", "--config", config, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    assert main(words) == 0
    folder = next((tmp_path / "runs").rglob("config.yaml")).parent
    run("export", folder, "--output", tmp_path / "mine", "--license", "apache-2.0")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "Trained with morphem, method `dino`, 2 steps. Network that was exported: teacher" in card
    assert "`data.root`: `sample://tiny`" in card
    assert (tmp_path / "mine" / "recipe.yaml").read_text() == (folder / "config.yaml").read_text()
    assert "ok" in run("verify", "--quiet", tmp_path / "mine")
