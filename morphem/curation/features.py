"""Features for curation: one row per image, from any encoder or from a small one that nobody trained."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from morphem.errors import DataError
from morphem.rng import mix

if TYPE_CHECKING:  # filling shards needs no torch until somebody asks for features
    from morphem.encoder import Encoder

_INPUT_SIZE_PX = 224
_BATCH_PLANES = 1  # alone, so that no bit of its features depends on the images that lie beside it in the shards


def features_of(
    root: str | Path, model: str | None = None, seed: int = 0, *, study: str | None = None, device: str | None = None
) -> tuple[list[str], NDArray[np.float32]]:
    """Embed whole images of a shard set; an image's row is the mean over its channels.

    Args:
        root: Shards.
        model: As `morphem.zoo.load` takes it; a small untrained encoder where not given, good enough to find copies and
            to tell full fields from empty ones.
        seed: Of the untrained encoder; no effect with a model.
        study: The only study to embed; all where not given.
        device: Where to compute; on the CPU where not given.

    Returns:
        Names of the images and their features, (N, D), in shard order.

    Raises:
        ConfigError: If there is no such study.
        DataError: If a plane is damaged.
        WeightsError: If the model cannot be loaded.
    """
    from morphem.embed import extract

    encoder = untrained_encoder(seed) if model is None else _load(model)
    table = extract(
        encoder,
        root,
        unit="image",
        combine="mean" if encoder.per_channel else "concat",
        query=None if study is None else f"experiment.study == {study!r}",
        batch_size=_BATCH_PLANES,
        device=device,
    )
    return table.metadata["Metadata_Image"].astype(str).tolist(), table.values


def in_order(image_ids: list[str], found: tuple[list[str], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return features in the order of some images.

    Args:
        image_ids: Names of images of one study.
        found: As `features_of` gives it, of that study.

    Returns:
        (N, D).

    Raises:
        DataError: If an image has no features, or a name is there twice.
    """
    places = {name: place for place, name in enumerate(found[0])}
    if len(places) != len(found[0]):
        raise DataError("two images with features have one name; ask for the features of one study at a time.")
    missing = [name for name in image_ids if name not in places]
    if missing:
        raise DataError(f"image '{missing[0]}' and {len(missing) - 1} more have no features; embed the whole study.")
    return found[1][[places[name] for name in image_ids]]


def untrained_encoder(seed: int) -> "Encoder":
    """Build a small encoder with random weights; the same ones for the same seed, and no other random state is touched.

    Args:
        seed: Any whole number.
    """
    import torch

    from morphem.backbones.vit import VisionTransformer
    from morphem.channels.bag_of_channels import BagOfChannels
    from morphem.encoder import Encoder
    from morphem.normalizers import SelfNormalize

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, "untrained encoder"))
        backbone = VisionTransformer("vit_tiny_patch16_224", depth=2)
    return Encoder(BagOfChannels(backbone), SelfNormalize(), input_size_px=_INPUT_SIZE_PX)


def _load(model: str) -> "Encoder":
    from morphem import zoo

    return zoo.load(model)
