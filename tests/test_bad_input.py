"""What goes wrong in real life, from end to end: one clear sentence, an exit code, and nothing lost.

Each test runs a command as a user types it. Ctrl-C during training is in test_kill_and_resume.py.
"""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch  # noqa: F401  (its log handler keeps the stream of its import; not that of one test)
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.cli import main
from morphem.data import png
from morphem.data.shards import ShardSet
from morphem.encoder import Encoder
from morphem.normalizers import SelfNormalize
from tests.small_shards import image, write

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error as the user reads it, behind any progress bar."""
        return self.err.rpartition("morphem: error: ")[2].strip()


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


def embed(encoder: Path, shards: object, *options: object) -> list[object]:
    return ["embed", "--model", encoder, "--data", shards, "--output", "out.parquet", "--accelerator", "cpu", *options]


def plane(shards: Path, number: int) -> tuple[Path, int, int]:
    """Return where a plane's PNG lies: shard, offset and length in bytes."""
    row = ShardSet(shards).table().to_pandas().iloc[number]
    return shards / row["shard"], int(row["plane_offset"]), int(row["plane_nbytes"])


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


# Shards


def test_a_missing_folder_of_shards(refused, encoder, tmp_path):
    sentence = refused(*embed(encoder, tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in sentence


def test_a_missing_shard(refused, encoder, shards):
    name = "study-000001.tar"
    (shards / name).unlink()
    assert name in refused(*embed(encoder, shards))
    assert not Path("out.parquet").exists()


def test_a_missing_shard_stops_training_before_it_starts(refused, shards, tiny_run):
    (shards / "study-000001.tar").unlink()
    assert "study-000001.tar" in refused("fit", "--config", tiny_run(root=str(shards)))


def test_a_truncated_shard(refused, encoder, shards):
    file = shards / "study-000002.tar"
    os.truncate(file, file.stat().st_size // 2)
    assert "study-000002.tar" in refused(*embed(encoder, shards))
    assert not Path("out.parquet").exists()


def test_a_truncated_shard_stops_training(refused, shards, tiny_run):
    file = shards / "study-000002.tar"
    os.truncate(file, file.stat().st_size // 2)
    assert "study-000002.tar" in refused("fit", "--config", tiny_run(root=str(shards)))


def test_a_corrupt_png_stops_embedding_with_its_name(refused, encoder, shards):
    file, offset, nbytes = plane(shards, 4)
    overwrite(file, offset + nbytes // 2, b"\0\xff" * 20)
    sentence = refused(*embed(encoder, shards))
    assert file.name in sentence
    assert "image1" in sentence
    assert not Path("out.parquet").exists()


def test_a_corrupt_png_is_skipped_counted_and_reported_in_training(command, shards, tiny_run, recwarn):
    file, offset, nbytes = plane(shards, 4)
    overwrite(file, offset + nbytes // 2, b"\0\xff" * 20)
    outcome = command("fit", "--config", tiny_run(root=str(shards)))
    assert outcome.code == 0, outcome.err
    said = outcome.err + "".join(str(warning.message) for warning in recwarn)
    assert "damaged" in said
    assert file.name in said


def test_too_many_corrupt_pngs_stop_training_with_the_file(refused, shards, tiny_run):
    for number in range(3):
        file, offset, nbytes = plane(shards, number)
        overwrite(file, offset + nbytes // 2, b"\0\xff" * 20)
    sentence = refused("fit", "--config", tiny_run(root=str(shards)), "--data.max_damaged", "1")
    assert "study-000000.tar" in sentence
    assert "max_damaged" in sentence


def foreign_png(kind: str) -> Callable[[np.ndarray], bytes]:
    """Another program's encoder."""

    def encode(pixels: np.ndarray) -> bytes:
        wide = pixels.astype(np.uint16) * 257
        picture = Image.fromarray(wide) if kind == "16-bit" else Image.fromarray(np.stack([pixels] * 3, -1))
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return stream.getvalue()

    return encode


@pytest.mark.parametrize(("kind", "said"), [("16-bit", "16"), ("RGB", "RGB")])
def test_a_plane_that_is_not_8_bit_grey(refused, encoder, tmp_path, monkeypatch, kind, said):
    with monkeypatch.context() as patch:
        patch.setattr("morphem.data.writer.png.encode", foreign_png(kind))
        write(tmp_path / "foreign", [image("image0")])
    sentence = refused(*embed(encoder, tmp_path / "foreign"))
    assert said in sentence
    assert "study-000000.tar" in sentence


# Images


def study(folder: Path, pixels: np.ndarray, **columns: str) -> Path:
    """Write a study folder of one image of one plane."""
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "a.png")
    row = {"file": "a.png", "imaging.multi_channel_id": "a", "imaging.channel_type": "nucleus", **columns}
    pd.DataFrame([row]).to_csv(folder / "metadata.csv", index=False)
    return folder


RAMP = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40)


def test_a_16_bit_image_where_8_bit_was_promised(refused, tmp_path):
    folder = study(tmp_path / "study", RAMP, dtype="uint8")
    sentence = refused("ingest", folder, "--output", tmp_path / "out")
    assert "uint16" in sentence
    assert "uint8" in sentence
    assert "a.png" in sentence
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_rgb_image_where_a_grey_plane_was_promised(refused, tmp_path):
    folder = study(tmp_path / "study", np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    sentence = refused("ingest", folder, "--output", tmp_path / "out")
    assert "a.png" in sentence
    assert "plane_axis" in sentence


def test_an_unknown_channel_type(refused, tmp_path):
    folder = study(tmp_path / "study", RAMP, **{"imaging.channel_type": "nucleos"})
    sentence = refused("ingest", folder, "--output", tmp_path / "out")
    assert "nucleos" in sentence
    assert "nucleus" in sentence


def test_a_study_folder_without_a_sheet(refused, tmp_path):
    (tmp_path / "study").mkdir()
    assert "metadata.csv" in refused("ingest", tmp_path / "study", "--output", tmp_path / "out")


def test_one_unreadable_image_is_left_out_and_the_others_are_kept(command, tmp_path):
    folder = study(tmp_path / "study", RAMP)
    (folder / "b.png").write_text("<html>not found</html>")
    table = pd.read_csv(folder / "metadata.csv")
    other = table.assign(**{"file": "b.png", "imaging.multi_channel_id": "b"})
    pd.concat([table, other]).to_csv(folder / "metadata.csv", index=False)
    outcome = command("ingest", folder, "--output", tmp_path / "out")
    assert outcome.code == 1
    assert "b.png" in outcome.out + outcome.err
    assert ShardSet(tmp_path / "out").table().num_rows == 1


# Selection


def test_a_query_that_nothing_matches(refused, encoder, shards):
    sentence = refused(*embed(encoder, shards, "--query", "microscopy.type == 'phase'"))
    assert "microscopy.type == 'phase'" in sentence
    assert "fluorescence" in sentence


def test_a_query_that_nothing_matches_stops_training(refused, shards, tiny_run):
    sentence = refused("fit", "--config", tiny_run(root=str(shards)), "--data.query", "experiment.well == 'Z99'")
    assert "experiment.well == 'Z99'" in sentence


def test_a_query_on_an_unknown_column(refused, encoder, shards):
    sentence = refused(*embed(encoder, shards, "--query", "microscopy.typ == 'phase'"))
    assert "microscopy.type" in sentence


# Cells and sizes


def test_no_cells_at_all_where_cells_are_embedded(refused, encoder, tmp_path):
    write(tmp_path / "bare", [image("image0"), image("image1")])
    sentence = refused(*embed(encoder, tmp_path / "bare", "--unit", "cell", "--crop-size-px", 16))
    assert "cell" in sentence


def test_an_image_with_zero_cells_among_others_is_counted(command, encoder, tmp_path):
    write(tmp_path / "some", [image("image0", cells=0), image("image1", cells=3)])
    outcome = command(*embed(encoder, tmp_path / "some", "--unit", "cell", "--crop-size-px", 16))
    assert outcome.code == 0, outcome.err
    assert "1 image" in outcome.out
    assert len(pd.read_parquet("out.parquet")) == 3


def test_training_where_there_are_no_cells_takes_random_crops(command, tmp_path, tiny_run):
    write(tmp_path / "bare", [image(f"image{i}", cells=0 if i % 2 else None, seed=i) for i in range(6)])
    outcome = command("fit", "--config", tiny_run(root=str(tmp_path / "bare")), "--data.default_scale", "24")
    assert outcome.code == 0, outcome.err


def test_an_image_smaller_than_the_tile_is_embedded_whole(command, encoder, shards):
    outcome = command(*embed(encoder, shards, "--tile-size-px", 4000))
    assert outcome.code == 0, outcome.err
    table = pd.read_parquet("out.parquet")
    assert len(table) == 6
    assert np.isfinite(table.filter(like="Cells_").to_numpy()).all()


def test_an_image_smaller_than_the_crop_is_clamped_in_training(command, shards, tiny_run):
    outcome = command("fit", "--config", tiny_run(root=str(shards)), "--data.default_scale", "4000")
    assert outcome.code == 0, outcome.err


def test_a_crop_smaller_than_a_plain_view(refused, shards, tiny_run):
    config = tiny_run(root=str(shards), **{"size_px: 32, area: [0.4, 1.0]": "size_px: 4000, mode: plain"})
    sentence = refused("fit", "--config", config)
    assert "4000" in sentence


# Labels


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


def test_missing_labels_are_left_out_and_said(command, shards, tmp_path, tiny_run, recwarn):
    data = labelled(tmp_path / "labelled", ["a", "b", None, "a", "b", "nan", "a", "b", "", "a", "b"])
    outcome = command("fit", "--config", tiny_run(root=str(shards)), *probe(data))
    assert outcome.code == 0, outcome.err
    said = outcome.out + outcome.err + "".join(str(warning.message) for warning in recwarn)
    assert "kind" in said


def test_a_label_column_without_a_label(refused, shards, tmp_path, tiny_run):
    data = labelled(tmp_path / "labelled", [None, None, "a", None])
    sentence = refused("fit", "--config", tiny_run(root=str(shards)), *probe(data))
    assert "kind" in sentence


# Settings


def test_a_wrong_key_in_a_config(refused, tiny_run):
    config = tiny_run(**{"batch_size: 4": "batch_sise: 4"})
    sentence = refused("fit", "--config", config, code=2, max_lines=8)
    assert "tiny.yaml" in sentence
    assert "batch_sise" in sentence
    assert "batch_size" in sentence


def test_an_unknown_plugin_in_a_config(refused, tiny_run):
    sentence = refused("fit", "--config", tiny_run(**{"class_path: dino": "class_path: dinno"}), code=2, max_lines=8)
    assert "tiny.yaml" in sentence
    assert "dinno" in sentence
    assert "dino" in sentence.replace("dinno", "")


@pytest.mark.slow
def test_a_wrong_key_is_found_without_torch(tiny_run, tmp_path):
    config = tiny_run(**{"batch_size: 4": "batch_sise: 4"})
    code = (
        "import sys\nfrom morphem.cli import main\n"
        f"assert main(['fit', '--config', {config!r}]) == 2\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# Weights


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


def test_resuming_from_a_checkpoint_with_code_in_it_is_refused_unrun(refused, checkpoint, shards, tiny_run, tmp_path):
    proof = tmp_path / "ran"
    content = torch.load(checkpoint, weights_only=True)
    trap = tmp_path / "trap.ckpt"
    torch.save({**content, "extra": Attack(proof)}, trap)
    words = ["fit", "--config", tiny_run(root=str(shards)), "--ckpt_path", trap, "--trainer.max_epochs", "1"]
    assert "trap.ckpt" in refused(*words, code=1, max_lines=8)
    assert not proof.exists()


# A full disk


FULL_DISK = """
import builtins, errno, os, sys
full = {folder!r}
def refuse(real):
    def call(target, *args, **kwargs):
        path = os.readlink(f"/proc/self/fd/{{target}}") if isinstance(target, int) else str(target)
        if path.startswith(full):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return real(target, *args, **kwargs)
    return call
os.fsync = refuse(os.fsync)
from morphem.cli import main
sys.exit(main({words!r}))
"""


def on_a_full_disk(folder: Path, words: list[object]) -> tuple[int, str]:
    code = FULL_DISK.format(folder=str(folder), words=[str(word) for word in words])
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.rpartition("morphem: error: ")[2]


@pytest.mark.slow
def test_a_disk_full_while_shards_are_written(tmp_path):
    folder = study(tmp_path / "study", RAMP)
    code, sentence = on_a_full_disk(tmp_path, ["ingest", folder, "--output", tmp_path / "out"])
    assert code == 1
    assert "disk is full" in sentence
    assert not list((tmp_path / "out").glob("*.tar"))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_a_disk_full_while_features_are_written_keeps_the_older_file(tmp_path, encoder, shards):
    (tmp_path / "out.parquet").write_text("older")
    words = embed(encoder, shards, "--overwrite")
    code, sentence = on_a_full_disk(tmp_path, words)
    assert code == 1
    assert "disk is full" in sentence
    assert (tmp_path / "out.parquet").read_text() == "older"


def test_the_png_encoder_that_is_patched_here_is_the_one_that_writes():
    from morphem.data import writer

    assert writer.png is png
