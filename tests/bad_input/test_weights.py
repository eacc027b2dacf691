"""Weights and checkpoints that do not fit, are damaged, or hold more than weights."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.encoder import Encoder
from morphem.normalizers import SelfNormalize
from tests.bad_input.cases import embed, overwrite


def another_architecture() -> Encoder:
    backbone = VisionTransformer(patch_size_px=8, image_size_px=16, embed_dim=24, depth=1, n_heads=2)
    return Encoder(BagOfChannels(backbone), SelfNormalize(), input_size_px=16)


def test_weights_of_another_architecture(refused, encoder, shards, tmp_path):
    mixed = tmp_path / "mixed"
    another_architecture().save_pretrained(mixed)
    shutil.copy(encoder / "config.json", mixed / "config.json")
    assert str(mixed) in refused(*embed(mixed, shards))


def test_weights_that_were_changed(refused, encoder, shards, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(encoder, changed)
    overwrite(changed / "model.safetensors", (changed / "model.safetensors").stat().st_size - 40, b"\x11" * 8)
    assert "model.safetensors" in refused(*embed(changed, shards))


def test_a_config_that_names_what_is_not_installed(refused, encoder, shards, tmp_path):
    foreign = tmp_path / "foreign"
    shutil.copytree(encoder, foreign)
    config = json.loads((foreign / "config.json").read_text())
    config["spec"]["init_args"]["channels"]["name"] = "os.system"
    (foreign / "config.json").write_text(json.dumps(config))
    assert "os.system" in refused(*embed(foreign, shards))


@pytest.fixture
def checkpoint(command, shards, tiny_run) -> Path:
    """A checkpoint of a short run."""
    outcome = command("fit", "--config", tiny_run(root=str(shards)), "--trainer.max_epochs", "1")
    assert outcome.code == 0, outcome.err
    return next(Path(tiny_run()).parent.rglob("last.ckpt"))


@pytest.mark.slow
def test_resuming_with_another_architecture(refused, checkpoint, shards, tiny_run):
    config = tiny_run(root=str(shards), **{"name: test_vit": "name: test_vit, depth: 2"})
    words = ["fit", "--config", config, "--ckpt_path", checkpoint, "--trainer.max_epochs", "1"]
    assert "depth" in refused(*words, code=2, max_lines=8)
    override = "[model.init_args.encoder.init_args.channels.init_args.backbone.init_args.depth]"
    assert "another architecture" in refused(*words, "--resume_override", override)


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".pt"])
def test_a_checkpoint_with_code_in_it_is_refused_unrun(refused, shards, tmp_path, suffix):
    trap, proof = tmp_path / f"trap{suffix}", tmp_path / "ran"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "morphem": Attack(proof)}, trap)
    sentence = refused(*embed(trap, shards))
    assert str(trap) in sentence
    assert not proof.exists()


def test_a_plain_pickle_with_code_in_it_is_refused_unrun(refused, shards, tmp_path):
    trap, proof = tmp_path / "trap.ckpt", tmp_path / "ran"
    trap.write_bytes(pickle.dumps(Attack(proof)))
    assert str(trap) in refused(*embed(trap, shards))
    assert not proof.exists()


@pytest.mark.slow
def test_resuming_from_a_checkpoint_with_code_in_it_is_refused_unrun(refused, checkpoint, shards, tiny_run, tmp_path):
    proof = tmp_path / "ran"
    content = torch.load(checkpoint, weights_only=True)
    trap = tmp_path / "trap.ckpt"
    torch.save({**content, "extra": Attack(proof)}, trap)
    words = ["fit", "--config", tiny_run(root=str(shards)), "--ckpt_path", trap, "--trainer.max_epochs", "1"]
    assert "trap.ckpt" in refused(*words, code=1, max_lines=8)
    assert not proof.exists()
