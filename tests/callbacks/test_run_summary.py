"""What a run leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from morphem import features
from morphem.callbacks import KNNProbe, LinearProbe, RunSummary
from morphem.callbacks.run_summary import _duration
from morphem.embed import extract
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.extraction import EmbedSettings
from tests.callbacks.labelled_shards import write_labelled
from tests.tiny_fit import fit, tiny_dino


def test_a_run_leaves_its_encoder_its_features_and_a_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_labelled(tmp_path / "shards")
    method, logger = tiny_dino(), CSVLogger(tmp_path)
    probes = [LinearProbe(shards, "texture", unit="image"), KNNProbe(shards, "texture", unit="image")]
    summary = RunSummary(shards, EmbedSettings(unit="image"))
    fit(method, *probes, summary, folder=tmp_path, logger=logger)
    folder = Path(logger.log_dir)

    encoder = Encoder.from_pretrained(folder / "encoder")
    exported, teacher = encoder.state_dict(), method.teacher_encoder.state_dict()
    assert all(torch.equal(value, exported[key]) for key, value in teacher.items())
    config = json.loads((folder / "encoder" / "config.json").read_text())
    assert config["exported"] == "teacher_encoder"
    assert config["steps"] == 2
    assert {"nucleus", "bright-field", "r"} <= set(config["channel_types"])
    assert config["probes"].keys() == {"probe/linear/texture", "probe/knn/texture"}

    table = features.read(folder / "features.parquet")
    assert (table.values == extract(method.teacher_encoder, shards, unit="image").values).all()
    assert table.provenance["weights_fingerprint"] == encoder.provenance()["weights_fingerprint"]
    assert table.provenance["model"] == str(folder / "encoder")

    printed = capsys.readouterr().out
    assert "Trained dino for 1 epochs (2 steps) in" in printed
    for probe in probes:
        assert f"{probe.name}: {probe.before:.3f} before, {probe.latest:.3f} after (balanced_accuracy)" in printed
    for path in (folder / "encoder", folder / "features.parquet"):
        assert str(path) in printed
    assert f"python -m morphem embed --model {folder / 'encoder'} --data SHARDS --unit image --output" in printed


def test_without_data_to_embed_there_is_no_table(tmp_path: Path) -> None:
    summary = RunSummary()
    fit(tiny_dino(), summary, folder=tmp_path)
    assert summary.features_path is None
    assert (tmp_path / "encoder" / "model.safetensors").is_file()


def test_the_next_command_cuts_images_as_the_run_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_labelled(tmp_path / "shards")
    summary = RunSummary(embed_data=shards, embed_settings=EmbedSettings("tile", tile_size_px=16))
    fit(tiny_dino(), summary, folder=tmp_path)
    assert "--data SHARDS --unit tile --tile-size-px 16 --output features.parquet" in capsys.readouterr().out


def test_settings_without_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="embed_data"):
        RunSummary(embed_settings=EmbedSettings(unit="image"))


def test_a_resumed_run_knows_what_was_seen_and_how_long_it_took() -> None:
    first, second = RunSummary(), RunSummary()
    first._channel_types, first._seconds = {"nucleus", "actin"}, 90.0
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == {"channel_types": ["actin", "nucleus"], "seconds": 90.0}


@pytest.mark.parametrize(("seconds", "text"), [(9, "9 s"), (71.2, "1 min 11 s"), (3725, "1 h 2 min")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
