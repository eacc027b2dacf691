"""Encoder: the input normaliser, a channel strategy and its backbone, saved and loaded as one thing.

The weights own their preprocessing: what normalises and resizes the pixels is part of the encoder, not of a data set.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from morphem import features, weights
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.engine import engine
from morphem.errors import ConfigError, DataError, WeightsError
from morphem.features import COMBINES, Combine, FeatureTable
from morphem.normalizers import Normalizer, SelfNormalize
from morphem.pixels import Planes, image_batch, not_8_bit, resolve_channels, select_images, split_images
from morphem.resample import resample
from morphem.spec import Configurable, from_spec, to_spec
from morphem.types import ChannelBatch

FORMAT_VERSION = 1
_CHUNK_PLANES = 64


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode without gradients, and every part of it back into its own mode afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


class Encoder(nn.Module, Configurable):
    """Pixels in, embeddings out.

    Args:
        channels: How planes become embeddings; holds the backbone.
        normalizer: What the weights expect to be done to 8-bit pixels.
        input_size_px: Every plane is resized to this height and width after it was normalised, as MorphEm's authors
            do; None leaves planes as they are (their sides must then suit the backbone).
        interpolation: Of the resize, antialiased where it shrinks. MorphEm's authors use `bilinear`.

    Attributes:
        embed_dim: D.
        card: What `config.json` says beyond the architecture (`exported`, `channel_types`, ...).
        origin: Where the weights came from: `model`, `revision`; empty for an encoder that was just built.

    Raises:
        ConfigError: If `input_size_px` is below 1 or `interpolation` is unknown.
    """

    def __init__(
        self,
        channels: ChannelStrategy,
        normalizer: Normalizer,
        input_size_px: int | None = 224,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> None:
        super().__init__()
        if input_size_px is not None and input_size_px < 1:
            raise ConfigError(f"encoder: input_size_px={input_size_px} must be at least 1, or null for no resize.")
        if interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"encoder: interpolation='{interpolation}' must be 'bilinear' or 'bicubic'.")
        self.channels = channels
        self.normalizer = normalizer
        self.input_size_px = input_size_px
        self.interpolation = interpolation
        self.embed_dim: int = channels.embed_dim
        self.card: dict[str, Any] = {}
        self.origin: dict[str, str] = {}

    @property
    def per_channel(self) -> bool:
        """Whether every plane gets an embedding of its own, (P, D), or every image one, (N, D)."""
        return self.channels.per_channel

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((tensor.device for tensor in self.parameters()), torch.device("cpu"))

    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed a dense, normalised batch (what a method calls on views): (P, D) or (N, D)."""
        return self.channels(batch)  # type: ignore[no-any-return]

    def features(self, batch: ChannelBatch) -> Tensor:
        """Embed a ragged batch of 8-bit pixels: normalise, resize, embed, in evaluation mode and without gradients.

        Args:
            batch: Ragged, uint8, on the encoder's device; planes of one image have one size.

        Returns:
            (P, D) or (N, D), float32; no row depends on the other images of the batch.

        Raises:
            DataError: If pixels are not 8-bit, planes of an image differ in size, or a size does not suit the backbone.
        """
        if not batch.ragged:
            raise DataError("features() takes ragged 8-bit batches; normalised, dense ones go to forward().")
        if batch.planes.dtype != torch.uint8:
            raise DataError(not_8_bit(str(batch.planes.dtype)))
        with evaluating(self):
            with torch.autocast(batch.planes.device.type, enabled=False):
                normalised = self.normalizer(batch)
            result = torch.empty(
                batch.n_planes if self.per_channel else batch.n_images, self.embed_dim, device=batch.planes.device
            )
            for rows, dense in self._dense(normalised):
                result[rows] = self(dense).float()
            return result

    def _dense(self, batch: ChannelBatch) -> Iterator[tuple[Tensor | slice, ChannelBatch]]:
        """Yield normalised batches of planes of one size, each with the rows of the result that it fills."""
        sizes = sorted({(height, width) for height, width in batch.sizes.tolist()})
        side = self.input_size_px
        if side is not None:
            whole = torch.cat([torch.zeros_like(batch.sizes), batch.sizes], dim=1)
            with torch.autocast(batch.planes.device.type, enabled=False):
                planes = (
                    batch.planes.reshape(-1, 1, side, side)
                    if sizes == [(side, side)]
                    else resample(batch, whole, (side, side), interpolation=self.interpolation)
                )
            yield slice(None), batch._replace(planes=planes, sizes=torch.full_like(batch.sizes, side))
        elif len(sizes) == 1:
            yield slice(None), batch._replace(planes=batch.planes.reshape(-1, 1, *sizes[0]))
        else:
            yield from self._by_size(batch, sizes)

    def _by_size(self, batch: ChannelBatch, sizes: list[tuple[int, int]]) -> Iterator[tuple[Tensor, ChannelBatch]]:
        image_of_plane = batch.image_of_plane()
        first = batch.sizes[batch.offsets[:-1]]  # (N, 2)
        if not torch.equal(first[image_of_plane], batch.sizes):
            raise DataError(
                "the planes of an image differ in size; set input_size_px so that the encoder resizes them."
            )
        for size in sizes:
            of_size = (first == first.new_tensor(size)).all(1)  # (N,)
            images, planes = of_size.nonzero()[:, 0], of_size[image_of_plane].nonzero()[:, 0]
            yield planes if self.per_channel else images, select_images(batch, images, planes, size)

    def embed(
        self,
        planes: Planes | Sequence[Planes],
        channels: Sequence[str],
        *,
        combine: Combine = "concat",
        key: str | Sequence[str] = "",
    ) -> FeatureTable:
        """Embed images that have the same channels.

        Args:
            planes: One image (C, H, W), images (N, C, H, W), or a list of images (C, H, W) of any sizes; uint8.
            channels: What each of the C planes shows, by name or alias; their order does not matter.
            combine: `concat` gives C * D columns, `mean` D columns, `none` a row per channel. An encoder that gives
                one embedding per image takes `concat` only.
            key: Name of the image, or of each; seeds the saturation noise, where the normaliser has it.

        Returns:
            One row per image (per channel plane with `none`), with columns in alphabetical order of the channels.

        Raises:
            ChannelError: If a channel is unknown or repeated, or there are not as many as planes.
            DataError: If the pixels are not 8-bit or have another number of axes.
        """
        check_combine(self, combine)
        images = split_images(planes)
        names = resolve_channels(channels, images)
        keys = [key] * len(images) if isinstance(key, str) else list(key)
        if len(keys) != len(images):
            raise ConfigError(f"{len(images)} images need one key, or {len(images)} of them, not {len(keys)}.")
        per_chunk = max(1, _CHUNK_PLANES // len(names))
        side = self.input_size_px or max(max(image.shape[1:]) for image in images)
        with evaluating(self), engine(self.features, self.device, side) as network:
            parts = [
                network(image_batch(images[i : i + per_chunk], names, keys[i : i + per_chunk]).to(self.device)).cpu()
                for i in range(0, len(images), per_chunk)
            ]
        values, columns, dictionary = table_columns(self, torch.cat(parts).numpy(), [names] * len(images), combine)
        metadata = pd.DataFrame(
            {"Metadata_Key": [name or str(i) for i, name in enumerate(keys)], "Metadata_Unit": "image"}
        )
        if combine == "none":
            metadata = metadata.loc[metadata.index.repeat(len(names))].reset_index(drop=True)
            metadata["Metadata_Channel"] = sorted(names) * len(images)
        return FeatureTable(values, metadata, columns, dictionary, {**self.provenance(), "combine": combine})

    def provenance(self) -> dict[str, Any]:
        """Return what a feature table says about its encoder: model, revision, hash of the weights, spec, version."""
        return {
            "model": self.origin.get("model", "built in memory"),
            "revision": self.origin.get("revision"),
            "weights_fingerprint": weights.fingerprint(self.state_dict()),
            "encoder": to_spec(self),
            "morphem_version": version("morphem"),
        }

    def save_pretrained(self, folder: str | Path, *, card: Mapping[str, Any] | None = None) -> None:
        """Write `config.json`, `model.safetensors` and a model card.

        Args:
            folder: Made where it does not exist; older files of these names are replaced.
            card: Further plain data for `config.json`, for example `exported` (`student` or `teacher`),
                `channel_types` that training saw, `license`, `datasets`.

        Raises:
            WeightsError: If the folder cannot be written, or the card uses a name that the config needs.
        """
        config = {
            "format_version": FORMAT_VERSION,
            "library": "morphem",
            "morphem_version": version("morphem"),
            "spec": to_spec(self),
            "embed_dim": self.embed_dim,
            "columns": f"{features.PREFIX}_{{Channel}}_{{index:04d}}, channels in alphabetical order",
        }
        card = dict(self.card if card is None else card)
        per = "channel" if self.per_channel else "image"
        summary = f"Channel strategy {type(self.channels).__name__}, {self.embed_dim} features per {per}."
        clash = sorted(set(card) & {*config, "weights_sha256"})
        if clash:
            raise WeightsError(f"the model card may not set {', '.join(clash)}; the encoder itself does.")
        weights.write_folder(Path(folder), self.state_dict(), {**config, **card}, weights.model_card(summary, card))

    @classmethod
    def from_pretrained(
        cls, folder_or_hub_id: str | Path, revision: str | None = None, local_files_only: bool | None = None
    ) -> "Encoder":
        """Build an encoder from a folder that `save_pretrained` wrote, on disk or on the Hugging Face hub.

        Args:
            folder_or_hub_id: A folder, or `owner/name`.
            revision: Commit, tag or branch on the hub.
            local_files_only: Look in the hub's cache only; where not given, as `HF_HUB_OFFLINE` says.

        Raises:
            WeightsError: If there is no such folder, it is of another library or a newer format, or its weights do not
                fit its architecture.
        """
        folder, name = Path(folder_or_hub_id), str(folder_or_hub_id)
        origin = {"model": name}
        if not folder.is_dir():
            if not weights.is_hub_id(name):
                raise WeightsError(f"there is no folder '{name}', and it is no hub id (owner/name).")
            folder = weights.fetch(name, [weights.CONFIG_FILE, weights.WEIGHTS_FILE], revision, local_files_only)
            origin["revision"] = folder.name  # the hub's cache names a snapshot after its commit
        elif revision is not None:
            raise WeightsError(f"'{name}' is a folder; a revision ('{revision}') belongs to a hub id.")
        config = weights.read_config(folder)
        encoder = encoder_from_config(config, str(folder))
        weights.load_strictly(encoder, weights.read_weights(folder, config), str(folder / weights.WEIGHTS_FILE))
        encoder.origin = origin
        return encoder.eval()

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works: planes of any size are resized to 16 x 16."""
        return cls(BagOfChannels.tiny(), SelfNormalize(), input_size_px=16)


def encoder_from_config(config: Mapping[str, Any], source: str) -> Encoder:
    """Build the encoder that a `config.json` describes, with untrained weights.

    The global random state is left as it was.

    Args:
        config: Content of the file.
        source: Where it comes from, for messages.

    Raises:
        WeightsError: If the config is of another library or a newer format, or describes something else.
    """
    if "format_version" not in config or "spec" not in config:
        raise WeightsError(f"the config of {source} is not one of morphem's (it needs 'format_version' and 'spec').")
    if config["format_version"] != FORMAT_VERSION:
        raise WeightsError(
            f"{source} has format {config['format_version']}, this version reads {FORMAT_VERSION}; update morphem."
        )
    with torch.random.fork_rng():
        encoder = from_spec(config["spec"])
    if not isinstance(encoder, Encoder):
        raise WeightsError(f"{source} describes a {type(encoder).__name__}, not an encoder.")
    own = {"format_version", "library", "morphem_version", "spec", "embed_dim", "columns", "weights_sha256"}
    encoder.card = {key: value for key, value in config.items() if key not in own}
    return encoder


def check_combine(encoder: Encoder, combine: str) -> None:
    """Check that a way of combining channels exists and has an effect.

    Raises:
        ConfigError: If it is unknown, or the encoder gives one embedding per image and it is not `concat`.
    """
    if combine not in COMBINES:
        raise ConfigError(f"combine='{combine}' must be one of {', '.join(COMBINES)}.")
    if not encoder.per_channel and combine != "concat":
        raise ConfigError(
            f"combine='{combine}' has no effect on {type(encoder.channels).__name__}, which gives one embedding per "
            "image; leave it at 'concat'."
        )


def table_columns(
    encoder: Encoder, values: NDArray[np.float32], channel_types: Sequence[Sequence[str]], combine: Combine
) -> tuple[NDArray[np.float32], tuple[str, ...], tuple[dict[str, Any], ...]]:
    """Turn what `Encoder.features` gives into the rows of a table, their column names and the dictionary.

    Args:
        encoder: Gave the values.
        values: (P, D) or (N, D).
        channel_types: For each of N images the type of each plane, in panel order.
        combine: See `Encoder.embed`.
    """
    if not encoder.per_channel:
        return values, *features.feature_columns(["image"], encoder.embed_dim, "image")
    return features.combine_channels(values, [features.channel_labels(image) for image in channel_types], combine)
