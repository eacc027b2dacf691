"""Checks of whole encoders: `features` is a pure function of pixels, channel names and weights."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from morphem.encoder import Encoder
from morphem.errors import DataError
from morphem.testing.batches import permute_channels, take, tiny_batch
from morphem.testing.contract import attempt, check_embedding, check_pure, expect_error, require, same
from morphem.types import ChannelBatch


def check_encoder(encoder: Encoder, batch: ChannelBatch | None = None) -> None:
    """Check that an encoder's features depend on pixels, channel names and weights alone, and survive saving.

    Args:
        encoder: Any encoder, from a method, the zoo or a config.
        batch: Ragged, uint8; images of one to five channels and different sizes where not given.

    Raises:
        ContractError: Names the class, what it broke and why that matters.
    """
    what = type(encoder.channels)
    batch = tiny_batch() if batch is None else batch
    mode = encoder.training
    kept = batch.planes.clone()
    features = attempt(what, "features() fails on an ordinary batch", lambda: _pure(encoder, batch))
    rows = batch.n_planes if encoder.per_channel else batch.n_images
    check_embedding(what, features, (rows, encoder.embed_dim))
    require(torch.equal(batch.planes, kept), what, "features() changes its input in place")
    require(encoder.training is mode, what, "features() switches the encoder between train() and eval()")
    require(not features.requires_grad, what, "features() returns a graph, which would fill the memory")
    _check_mates(encoder, batch, features)
    turned, order = permute_channels(batch)
    expected = features[order] if encoder.per_channel else features
    message = "features() changes when channels are reordered together with their names"
    require(same(encoder.features(turned), expected), what, message)
    expect_error(
        what,
        DataError,
        "features() takes pixels that are not 8-bit",
        lambda: encoder.features(batch._replace(planes=batch.planes.int())),
    )
    _check_saving(encoder, batch, features)


def _pure(encoder: Encoder, batch: ChannelBatch) -> torch.Tensor:
    return check_pure(type(encoder.channels), lambda: encoder.features(batch))


def _check_mates(encoder: Encoder, batch: ChannelBatch, together: torch.Tensor) -> None:
    bounds = batch.offsets.tolist() if encoder.per_channel else list(range(batch.n_images + 1))
    for i in range(batch.n_images):
        alone = encoder.features(take(batch, [i]))
        require(
            same(alone, together[bounds[i] : bounds[i + 1]]),
            type(encoder.channels),
            f"features() gives image '{batch.keys[i]}' another embedding alone than among {batch.n_images} images",
        )


def _check_saving(encoder: Encoder, batch: ChannelBatch, features: torch.Tensor) -> None:
    what = type(encoder.channels)
    with TemporaryDirectory() as folder:
        attempt(what, "cannot be saved", lambda: encoder.save_pretrained(folder))
        files = sorted(path.name for path in Path(folder).iterdir())
        for name in ("config.json", "model.safetensors"):
            require(name in files, what, f"save_pretrained wrote {files}, but no {name}")
        again = attempt(what, "cannot be loaded again", lambda: Encoder.from_pretrained(folder))
    same_numbers = torch.equal(again.to(encoder.device).features(batch), features)
    require(same_numbers, what, "gives other features after save_pretrained and from_pretrained")
