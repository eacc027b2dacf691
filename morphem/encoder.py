"""Encoder: the input normaliser, a channel strategy and its backbone, saved and loaded as one thing.

The weights own their preprocessing: what normalises and resizes the pixels is part of the encoder, not of a data set.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
import torch
from torch import Tensor, nn

from morphem import features, weights
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.domains import Domain, Stated, to_domain
from morphem.engine import engine
from morphem.errors import ConfigError, DataError, WeightsError
from morphem.features import Combine, FeatureTable
from morphem.geometry import Fit, Geometry
from morphem.normalizers import Normalizer, SelfNormalize
from morphem.pieces import Pieces, cut, mean_rows
from morphem.pixels import Planes, resolve_channels, select_images, split_images
from morphem.recipe import Recipe
from morphem.rows import check_combine, table_columns
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
        normalizer: What the weights expect to be done to pixels before they are resized; declares the input domain.
        input_size_px: Every plane becomes a square of this side after it was normalised, as MorphEm's authors do; None
            leaves planes as they are (their sides must then suit the backbone).
        interpolation: Of the resize. MorphEm's authors use `bilinear`.
        antialias: Whether to widen the filter where the resize shrinks.
        fit: How planes become squares: `stretch` (resize), `centre_crop`, `crop_and_stretch`, `pad` or
            `pad_and_stretch`; see `morphem.geometry.Geometry`.
        shorter_side_px: With `centre_crop`: resize the shorter side to this first.
        after_resize: What is done to pixels after they were resized: what the network itself sees is normalised.
        recipe: How an image is cut and how its pieces become a row; the whole image where not given.

    Attributes:
        embed_dim: D.
        card: What `config.json` says beyond the architecture (`exported`, `channel_types`, ...).
        origin: Where the weights came from: `model`, `revision`; empty for an encoder that was just built.

    Raises:
        ConfigError: If a setting is out of range or has no effect.
    """

    def __init__(
        self,
        channels: ChannelStrategy,
        normalizer: Normalizer,
        input_size_px: int | None = 224,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        antialias: bool = True,
        fit: Fit = "stretch",
        shorter_side_px: int | None = None,
        after_resize: Normalizer | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        super().__init__()
        self.geometry = (
            None if input_size_px is None else Geometry(input_size_px, fit, shorter_side_px, interpolation, antialias)
        )
        if input_size_px is None and (fit != "stretch" or shorter_side_px is not None or not antialias):
            raise ConfigError("encoder: fit, shorter_side_px and antialias have no effect without input_size_px.")
        if interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"encoder: interpolation='{interpolation}' must be 'bilinear' or 'bicubic'.")
        self.channels = channels
        self.normalizer = normalizer
        self.input_size_px = input_size_px
        self.interpolation = interpolation
        self.after_resize = after_resize
        self.recipe = recipe or Recipe()
        self.embed_dim: int = channels.embed_dim
        self.card: dict[str, Any] = {}
        self.origin: dict[str, str] = {}

    @property
    def input_domain(self) -> Domain:
        """Pixels that the weights were made for: `uint8`, `uint16`, `unit` (floats from 0 to 1) or `any`."""
        return self.normalizer.input_domain

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

    @property
    def dtype(self) -> torch.dtype:
        """Type that pixels are normalised in: float64 where the weights are, else float32."""
        first = next((tensor.dtype for tensor in self.parameters()), torch.float32)
        return torch.float64 if first == torch.float64 else torch.float32

    def features(self, batch: ChannelBatch) -> Tensor:
        """Embed a ragged batch of pixels: normalise, resize, embed, in evaluation mode and without gradients.

        Every image of the batch is one piece; `embed` follows the recipe.

        Args:
            batch: Ragged, of the type of the input domain, on the encoder's device; planes of one image have one size.

        Returns:
            (P, D) or (N, D), float32 (float64 where the weights are); no row depends on the other images of the batch.

        Raises:
            ChannelError: If an image has channels that the strategy does not take.
            DataError: If pixels are of another type, NaN or infinite, planes of an image differ in size, or a size does
                not suit the backbone.
        """
        if not batch.ragged:
            raise DataError("features() takes ragged batches of pixels; normalised, dense ones go to forward().")
        with evaluating(self):
            self.channels.check(batch)
            with torch.autocast(batch.planes.device.type, enabled=False):
                normalised = (
                    self.normalizer(batch) if self.dtype == torch.float32 else self.normalizer(batch, self.dtype)
                )
            n_rows = batch.n_planes if self.per_channel else batch.n_images
            result = torch.empty(n_rows, self.embed_dim, device=batch.planes.device, dtype=self.dtype)
            for rows, dense in self._dense(normalised):
                result[rows] = self(dense).to(self.dtype)
            return result

    def _dense(self, batch: ChannelBatch) -> Iterator[tuple[Tensor | slice, ChannelBatch]]:
        """Yield normalised batches of planes of one size, each with the rows of the result that it fills."""
        if self.geometry is not None:
            side = self.geometry.size_px
            with torch.autocast(batch.planes.device.type, enabled=False):
                squares = self.geometry(batch)
            batch = batch._replace(planes=squares.reshape(-1), sizes=torch.full_like(batch.sizes, side))
        if self.after_resize is not None:
            with torch.autocast(batch.planes.device.type, enabled=False):
                batch = self.after_resize.apply_to(batch._replace(planes=batch.planes.clone()))
        sizes = sorted({(height, width) for height, width in batch.sizes.tolist()})
        if len(sizes) == 1:
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
        channels: Sequence[str | int],
        *,
        combine: Combine = "concat",
        key: str | Sequence[str] = "",
        pixels: Stated | None = None,
        recipe: Recipe | None = None,
    ) -> FeatureTable:
        """Embed images that have the same channels, cut as the encoder's authors do.

        Args:
            planes: One image (C, H, W), images (N, C, H, W), or a list of images (C, H, W) of any sizes; of the type of
                the input domain, unless `pixels` says what they are.
            channels: What each of the C planes shows, by name or alias, or by number where the encoder has a list of
                channels; their order does not matter.
            combine: `concat` gives C * D columns, `mean` D columns, `none` a row per channel. An encoder that gives
                one embedding per image takes `concat` only.
            key: Name of the image, or of each; seeds the saturation noise, where the normaliser has it.
            pixels: What the pixels are, where they are not of the input domain: `uint8`, `uint16`, `unit` or a number
                (0 to which they span; the full range becomes the domain's), or `percentiles` (every plane is clipped at
                its 0.1 and 99.9 percentiles and stretched, as `morphem ingest` does).
            recipe: How to cut the images, in place of the encoder's own; `Recipe()` takes them whole.

        Returns:
            One row per image (per channel plane with `none`), with columns in alphabetical order of the channels.

        Raises:
            ChannelError: If a channel is unknown or repeated, or there are not as many as planes.
            DataError: If the pixels are of another domain, NaN or infinite, or have another number of axes.
        """
        check_combine(self, combine)
        images = split_images(planes)
        names = resolve_channels(channels, images, self.channels.resolve)
        images = to_domain(images, self.input_domain, pixels)
        keys = [key] * len(images) if isinstance(key, str) else list(key)
        if len(keys) != len(images):
            raise ConfigError(f"{len(images)} images need one key, or {len(images)} of them, not {len(keys)}.")
        recipe = recipe or self.recipe
        pieces = cut(images, names, keys, recipe)
        raw = mean_rows(self._embed_pieces(pieces, names), pieces, len(names) if self.per_channel else 1)
        values, columns, dictionary = table_columns(
            self, raw.numpy(), [names] * len(images), combine, recipe.unit_length
        )
        metadata = pd.DataFrame(
            {"Metadata_Key": [name or str(i) for i, name in enumerate(keys)], "Metadata_Unit": "image"}
        )
        if not recipe.whole_image:
            metadata["Metadata_Tiles"] = pieces.counts
        if combine == "none":
            metadata = metadata.loc[metadata.index.repeat(len(names))].reset_index(drop=True)
            metadata["Metadata_Channel"] = sorted(names) * len(images)
        provenance = {**self.provenance(), "combine": combine, "pixels": pixels, "recipe": asdict(recipe)}
        return FeatureTable(values, metadata, columns, dictionary, provenance)

    def _embed_pieces(self, pieces: Pieces, names: Sequence[str]) -> Tensor:
        """Return what `features` gives for all pieces, on the CPU."""
        per_chunk = max(1, _CHUNK_PLANES // len(names))
        side = self.input_size_px or max(max(crop.shape[1:]) for crop in pieces.crops)
        with evaluating(self), engine(self.features, self.device, side) as network:
            parts = [network(batch.to(self.device)).cpu() for batch in pieces.batches(names, per_chunk)]
        return torch.cat(parts)

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
