"""Train an encoder with DINO from Python, watch it with a probe, export it, and use it.

The data are a synthetic study with a known answer: one compound takes the mitochondria apart. A few seconds of training
show how the parts fit together, not a good encoder; for that, see the recipes in `configs/`.

python examples/train_from_python.py --output runs/example
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint

import morphem
from morphem.backbones.vit import VisionTransformer
from morphem.callbacks import LinearProbe
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.module import ShardData
from morphem.data.synthetic import Phenotype, SyntheticStudy, Treatment, write_sample
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.methods.dino import DINO
from morphem.normalizers import SelfNormalize


def build_method() -> DINO:
    """Build DINO over a bag of channels, as small as makes sense."""
    backbone = VisionTransformer(
        patch_size_px=8, image_size_px=48, embed_dim=48, depth=2, n_heads=3, drop_path_rate=0.1
    )
    encoder = Encoder(BagOfChannels(backbone), SelfNormalize(saturation_noise=True), input_size_px=48)
    views = MultiCrop(
        [
            ViewRecipe(count=2, size_px=48, area=(0.4, 1.0)),
            ViewRecipe(count=4, size_px=24, area=(0.05, 0.4)),
        ]
    )
    return DINO(encoder, views, n_prototypes=256, head_hidden_dim=64, head_bottleneck_dim=32, lr=1e-3, warmup_epochs=1)


def write_study(shards: Path) -> None:
    """Write shards of a study of 48 images, half of them treated."""
    torn = Treatment("compound 01", Phenotype("fragmented mitochondria", mitochondrial_fragmentation=1.0))
    study = SyntheticStudy(
        "two-channels", ("nucleus", "mitochondria"), (torn,), size_px=(96, 96), n_replicates=6, n_control_wells=6
    )
    write_sample(shards, [study])


def main() -> None:
    """Train, export, load and embed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/example", help="folder of the run")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        write_study(Path(name))
        run(name, Path(options.output), options.epochs)


def run(shards: str, folder: Path, epochs: int) -> None:
    """Train on shards, and embed them with what was trained."""
    L.seed_everything(0)
    method = build_method()
    probe = LinearProbe(data=shards, label="phenotype", group="experiment.well", every_n_epochs=epochs)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[probe, ModelCheckpoint(folder, save_last=True)],
        logger=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(method, datamodule=ShardData(shards, batch_size=16, num_workers=0))
    print(f"trained for {trainer.global_step} steps")
    print(f"balanced accuracy of the probe: {probe.before:.2f} before, {probe.latest:.2f} after")

    method.exported_encoder().save_pretrained(folder / "encoder", card={"exported": method.export})
    encoder = morphem.load(folder / "encoder")  # or the checkpoint itself: folder / "last.ckpt"
    table = morphem.extract(encoder, shards, combine="concat", aggregate="well")
    table.write(folder / "features.parquet")
    print(f"wrote {folder / 'features.parquet'}: {table.values.shape[0]} wells x {table.values.shape[1]} features")


if __name__ == "__main__":
    main()
