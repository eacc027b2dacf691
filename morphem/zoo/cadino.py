"""Channel-Adaptive DINO (one channel) and Cell-DINO (four or five): DINOv2 transformers of Meta for cells.

Source: De Lorenci et al. 2025 (Channel-Adaptive DINO, TMLR); Moutakanni et al. 2025 (Cell-DINO, PLOS Comput. Biol.,
https://doi.org/10.1371/journal.pcbi.1013828); the December 2025 release of facebookresearch/dinov2, read at
sondvo/dinov2 bfb35b5. Weights by a form (FAIR Noncommercial Research License). Files are flat, or hold `teacher` with
`backbone.`; blocks stand in chunks (`blocks.{chunk}.{i}`, i counted over the whole network). Pixels are divided by 255
and normalised per plane, with epsilon 1e-7 added to the population standard deviation, after any resize and crop. Left
out of the files: `mask_token`, `dino_head.*`, `ibot_head.*`.

Recipes: `knn`, the default, is that of the authors' nearest neighbours: Channel-Adaptive DINO resizes the shorter side
to 256 (bicubic), Cell-DINO does not resize; the middle square of the native size is cut out and normalised, and rows
have length 1. `plain` takes planes as they are. The authors pin torchvision 0.15, which resizes tensors without
antialiasing; later releases antialias (`antialias=False` gives the former).
Differs from it: planes that are smaller than the crop are refused, where torchvision pads them with zeros; several
blocks of several channels go block after block there, in a table of ours they go channel after channel.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from morphem.backbones.several_blocks import SeveralBlocks
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.channels.fixed_channels import FixedChannels
from morphem.data.schema import channel_vocabulary
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError
from morphem.geometry import Geometry
from morphem.pixel_steps import Chain, Divide, ZScore
from morphem.recipe import Recipe
from morphem.types import ChannelBatch
from morphem.zoo.base import Checkpoint, Pretrained, Record
from morphem.zoo.cadino_records import ATLAS, CELL_DINO, CELL_PAINTING, CHANNEL_ADAPTIVE
from morphem.zoo.chunked_blocks import block_tokens, chunked, is_chunked, joined, unit_rows
from morphem.zoo.replaying import altered
from morphem.zoo.seen import network_batch
from morphem.zoo.single_vit import (
    PROJECTION,
    Tensors,
    build,
    fill,
    native_size,
    network_of,
    split_prefixes,
    state_of,
    without,
)

_HEADS = ("mask_token", "dino_head.", "ibot_head.")
_SHORTER_SIDE_PX = 256
_CROP_PX = 224
_SMALL_PATCH_PX = 8
Kind = Literal["knn", "plain"]


class _CellDINO(Pretrained):
    """What both share.

    Args:
        n_heads: Attention heads; where not given, 6 for ViT-S, 16 for ViT-L, by the width.
        recipe: `knn` or `plain`.
        n_blocks: Class tokens of so many of the last blocks, oldest first; the authors' classifiers take 1 or 4.
        mean_patch: Whether the mean patch token of the last block follows them.
        antialias: Whether the resize of `knn` widens its filter where it shrinks.

    Raises:
        ConfigError: If the recipe is unknown, or antialiasing is switched off without a resize.
    """

    not_compared: ClassVar[Mapping[str, str]] = {}
    shorter_side_px: ClassVar[int | None] = None

    def __init__(
        self, n_heads: int | None = None, recipe: Kind = "knn", n_blocks: int = 1, mean_patch: bool = False
    ) -> None:
        if recipe not in ("knn", "plain"):
            raise ConfigError(f"recipe='{recipe}' must be knn or plain.")
        self.n_heads = n_heads
        self.recipe = recipe
        self.n_blocks = n_blocks
        self.mean_patch = mean_patch
        self.antialias = True

    def _strategy(self, backbone: VisionTransformer | SeveralBlocks, source: str) -> ChannelStrategy:
        raise NotImplementedError

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder, flat or training form; `mask_token`, `dino_head.*` and `ibot_head.*` are left out."""
        source = str(checkpoint.path)
        theirs = without(split_prefixes(checkpoint.entry("teacher"), "module.backbone.", "backbone.", ""), *_HEADS)
        tensors, chunk = joined(theirs)
        network = build(
            tensors,
            source,
            "Cell-DINO encoder",
            n_heads=self.n_heads,
            default_heads=_heads(tensors),
            layer_scale=1.0,
        )
        fill(network, tensors, source)
        several = self.n_blocks > 1 or self.mean_patch
        backbone = SeveralBlocks(network, self.n_blocks, self.mean_patch) if several else network
        encoder = self._encoder(self._strategy(backbone, source), native_size(tensors, source, "Cell-DINO encoder"))
        encoder.card = {"exported": "teacher", "chunk": chunk}
        return encoder.eval()

    def _encoder(self, strategy: ChannelStrategy, side: int) -> Encoder:
        steps = {"normalizer": Chain([Divide(255.0)]), "after_resize": ZScore(1e-7, "deviation")}
        if self.recipe == "plain":
            return Encoder(strategy, input_size_px=None, **steps)  # type: ignore[arg-type]
        resize: dict[str, Any] = {}
        if self.shorter_side_px is not None:
            resize = {"shorter_side_px": self.shorter_side_px, "interpolation": "bicubic", "antialias": self.antialias}
        return Encoder(
            strategy,
            input_size_px=side,
            fit="centre_crop",
            recipe=Recipe(unit_length=True),
            **resize,
            **steps,  # type: ignore[arg-type]
        )

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors under the authors' names, in chunks where the file had them."""
        return chunked(state_of(encoder), encoder.card["chunk"])


class ChannelAdaptiveDINO(_CellDINO):
    """Channel-Adaptive DINO: every plane alone.

    Args:
        n_heads: Attention heads; where not given, 16 for ViT-L, by the width.
        recipe: `knn` or `plain`.
        n_blocks: Class tokens of so many of the last blocks, oldest first.
        mean_patch: Whether the mean patch token of the last block follows them.
        antialias: Whether the resize of `knn` widens its filter where it shrinks, as torchvision does since 0.17.
    """

    fixture: ClassVar[str] = "cadino"
    records: ClassVar[tuple[Record, ...]] = CHANNEL_ADAPTIVE
    shorter_side_px: ClassVar[int | None] = _SHORTER_SIDE_PX

    def __init__(
        self,
        n_heads: int | None = None,
        recipe: Kind = "knn",
        n_blocks: int = 1,
        mean_patch: bool = False,
        antialias: bool = True,
    ) -> None:
        super().__init__(n_heads, recipe, n_blocks, mean_patch)
        if recipe == "plain" and not antialias:
            raise ConfigError("antialias=False has no effect with recipe='plain', which does not resize; leave it out.")
        self.antialias = antialias

    def _strategy(self, backbone: VisionTransformer | SeveralBlocks, source: str) -> ChannelStrategy:
        if backbone.in_channels != 1:
            raise WeightsError(
                f"{source} takes {backbone.in_channels} channels at once; Channel-Adaptive DINO takes one."
            )
        return BagOfChannels(backbone)

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds a DINOv2 transformer of one channel whose blocks stand in chunks."""
        return is_chunked(checkpoint, lambda n: n == 1)

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take the heads of the record."""
        if not str(record.get("fixture", "")).startswith(cls.fixture):
            return None
        return cls(n_heads=record["constructor"]["num_heads"], recipe="plain")

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute class tokens and mean patch tokens of all channels, block after block."""
        images = inputs["images"]
        outputs = record["cases"][case]["outputs"]
        if case.startswith("knn"):
            return {
                name: unit_rows(self._knn(encoder, record["cases"][case]["words"], name, images)) for name in outputs
            }
        n_blocks = max([1, *(int(found[1]) for found in map(_N_BLOCKS.search, outputs) if found)])
        classes, means = block_tokens(encoder, images, n_blocks)  # (blocks, N, C, D), (N, C, D)
        parts = {
            "features_last_block": classes[-1].flatten(1),
            f"features_{n_blocks}_blocks_and_mean_patch": torch.cat(
                [*(block.flatten(1) for block in classes), means.flatten(1)], dim=1
            ),
            "class_tokens_per_block": classes,
            "mean_patch_last_block": means,
            "features": torch.cat([classes[-1].flatten(1), means.flatten(1)], dim=1),
        }
        if "tokens_embedded" in outputs:
            seen = network_batch(encoder, ChannelBatch.from_planes([[images[0, 0]]], [["other"]]))
            parts["tokens_embedded"] = network_of(encoder).embedded(seen.planes)
        return {name: value for name, value in parts.items() if name in outputs}

    def _knn(self, encoder: Encoder, words: str, output: str, images: Tensor) -> Tensor:
        """Rows of the nearest-neighbour recipe before they are scaled to length 1."""
        shorter = _number(r"shorter side to (\d+)", words, _SHORTER_SIDE_PX)
        crop = _number(r"crop (\d+)", words, encoder.input_size_px or _CROP_PX)
        geometry = Geometry(crop, "centre_crop", shorter, "bicubic", "no_antialias" not in output)
        classes, means = block_tokens(altered(encoder, geometry=geometry, input_size_px=crop), images, 1)
        parts = [classes[0].flatten(1)]
        return torch.cat([*parts, means.flatten(1)] if "mean_patch" in output else parts, dim=1)


class CellDINO(_CellDINO):
    """Cell-DINO: all channels of an image at once.

    Args:
        n_heads: Attention heads; where not given, 6 for ViT-S, 16 for ViT-L, by the width.
        channels: What the input channels show, by name or alias, in the order of the weights. Where not given, five are
            those of Cell Painting (DNA, ER, RNA, AGP, Mito), and four are assumed to be those of the Human Protein
            Atlas (microtubules, protein, nucleus, endoplasmic reticulum), which is said in a warning.
        recipe: `knn` or `plain`.
        n_blocks: Class tokens of so many of the last blocks, oldest first.
        mean_patch: Whether the mean patch token of the last block follows them.
    """

    fixture: ClassVar[str] = "celldino"
    records: ClassVar[tuple[Record, ...]] = CELL_DINO

    def __init__(
        self,
        n_heads: int | None = None,
        channels: Sequence[str] | None = None,
        recipe: Kind = "knn",
        n_blocks: int = 1,
        mean_patch: bool = False,
    ) -> None:
        super().__init__(n_heads, recipe, n_blocks, mean_patch)
        self.channels = channels

    def _strategy(self, backbone: VisionTransformer | SeveralBlocks, source: str) -> ChannelStrategy:
        names = self.channels if self.channels is not None else self._assumed(backbone.in_channels, source)
        if len(names) != backbone.in_channels:
            raise WeightsError(
                f"{source} takes {backbone.in_channels} channels, but {len(names)} are named ({', '.join(names)}); "
                "name them in the order of the weights: channels=[...]."
            )
        return FixedChannels(backbone, names)

    def _assumed(self, count: int, source: str) -> Sequence[str]:
        if count == len(CELL_PAINTING):
            return CELL_PAINTING
        if count == len(ATLAS):
            warnings.warn(
                f"{source}: the release does not state the order of its four channels; {', '.join(ATLAS)} is assumed "
                "(say channels=[...] to be sure).",
                stacklevel=4,
            )
            return ATLAS
        raise WeightsError(f"{source} takes {count} channels, and nothing in it says which; say channels=[...].")

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds a DINOv2 transformer of four or more channels whose blocks stand in chunks."""
        return is_chunked(checkpoint, lambda n: n > 3)

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take the heads of the record; its channels go by numbers, so any names will do."""
        if not str(record.get("fixture", "")).startswith(cls.fixture):
            return None
        constructor = record["constructor"]
        names = {4: ATLAS, 5: CELL_PAINTING}.get(constructor["in_chans"])
        if names is None:
            names = tuple(channel_vocabulary())[: constructor["in_chans"]]
        return cls(constructor["num_heads"], names, recipe="plain")

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute class tokens of the last blocks and the mean patch token of the last."""
        images = inputs["images"]
        if "crop" in inputs:
            crop = int(inputs["crop"])
            encoder = altered(encoder, geometry=Geometry(crop, "centre_crop"), input_size_px=crop)
        outputs = record["cases"][case]["outputs"]
        found: dict[str, Tensor] = {}
        for output in outputs:
            number = _N_BLOCKS.search(output)
            classes, means = block_tokens(encoder, images, int(number[1]) if number else 1)
            parts = [*classes[:, :, 0], means[:, 0]] if "mean_patch" in output else [classes[-1, :, 0]]
            found[output] = torch.cat(parts, dim=1)
            if case.startswith("knn"):
                found[output] = unit_rows(found[output])
        return found


_N_BLOCKS = re.compile(r"(\d+)_blocks")


def _heads(tensors: Tensors) -> int:
    """Return the heads of a network of an unpublished width: those of the release with its patches."""
    small = PROJECTION in tensors and tensors[PROJECTION].shape[-1] == _SMALL_PATCH_PX
    return 6 if small else 16


def _number(pattern: str, words: str, default: int) -> int:
    """Return the number that a sentence says, or a default where it says none."""
    found = re.search(pattern, words)
    return int(found[1]) if found else default
