"""Commands as a user types them, and the data that they are given."""

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch  # noqa: F401  (its log handler keeps the stream of its import; not that of one test)
import pytest

from morphem.cli import main
from morphem.encoder import Encoder
from tests.bad_input.cases import Outcome
from tests.small_shards import image, write


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """Run a command in this process, in an empty folder."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*words: object) -> Outcome:
        capfd.readouterr()
        code = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(command: Callable[..., Outcome]) -> Callable[..., str]:
    """Run a command that must fail for a reason that a user can put right; return the sentence."""

    def run(*words: object, code: int = 1, max_lines: int = 1) -> str:
        outcome = command(*words)
        assert outcome.code == code, outcome.err
        assert "Traceback" not in outcome.err
        assert outcome.err.count("morphem: error: ") == 1, outcome.err
        assert len(outcome.sentence.splitlines()) <= max_lines, outcome.sentence
        return outcome.sentence

    return run


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny encoder."""
    folder = tmp_path_factory.mktemp("encoder")
    Encoder.tiny().save_pretrained(folder)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Six images of three planes in three shards, with cells."""
    root = tmp_path / "shards"
    write(root, [image(f"image{i}", well=f"A{i:02d}", cells=4, seed=i) for i in range(6)])
    return root
