"""uniDINO: one DINO transformer for single planes of any fluorescence assay, run over tiles of 16-bit fields.

Source: Bayer-Group/uniDINO at 03c5ee3 (https://github.com/Bayer-Group/uniDINO, BSD-3-Clause), weights at
https://doi.org/10.5281/zenodo.14988837 (CC-BY-NC-4.0). Pixels are divided by 65535 and not normalised; the authors
expect fields that were scaled to the full range between percentiles (0.01 and 99.9) beforehand. A field is cut into
tiles of the native size without overlap from the top left corner, the remainder unused; tiles whose nucleus channel is
blank (less than 1 % of the pixels above 0: the released call passes the threshold 0) are left out, the middle one is
kept where all would be. The row of a well is the mean over all tiles of all of its fields. Left out of the file:
`head.*`.
Differs from it: tiles are counted along both axes; the authors' loop counts rows for both, and so skips columns of wide
fields (`square_grid=True`). The channel that tells blank tiles is the nucleus where a field has one, and else the
first in alphabetical order; the authors take the first of the file.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.crops import CropRule
from morphem.data.emptiness import EmptyRule
from morphem.data.schema import channel_vocabulary
from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.pixel_steps import Chain, Divide
from morphem.recipe import Recipe
from morphem.zoo.base import Checkpoint, Pretrained, Record, WebFile
from morphem.zoo.replaying import embed
from morphem.zoo.single_vit import build, fill, is_vit, native_size, split_prefixes, state_of, without
from morphem.zoo.tiled import tile_features

_WHITE = 65535.0
_PREFIXES = ("module.backbone.", "backbone.")


class UniDINO(Pretrained):
    """The released encoder, and training checkpoints of the same code; the teacher is used.

    Args:
        n_heads: Attention heads; where not given, 6 for ViT-S, by the width.
        square_grid: Use no more columns of tiles than there are rows, as the authors' loop does.
        keep_blank_tiles: Embed all tiles, blank ones too.
    """

    fixture: ClassVar[str] = "unidino"
    records: ClassVar[tuple[Record, ...]] = (
        Record(
            name="unidino",
            summary="uniDINO: DINO, bag of channels, ViT-S/16 on five fluorescence data sets: 384 features per channel",
            location=WebFile("https://zenodo.org/records/14988837/files/uniDINO.pth"),
            license="cc-by-nc-4.0",
            restricted=True,
            citation="uniDINO, Comput. Struct. Biotechnol. J. 2025, https://doi.org/10.5281/zenodo.14988837",
            source="https://github.com/Bayer-Group/uniDINO at 03c5ee3",
            exported="teacher",
            input_domain="uint16",
            preparation="divided by 65535; tiles of 224 without overlap, blank ones left out, mean over tiles",
            native_size_px=224,
            pooling="class token after the final LayerNorm, per channel",
            channel_rule="any channels, each on its own",
            embed_dim=384,
            facts={"n_heads": 6},
        ),
    )
    not_compared: ClassVar[Mapping[str, str]] = {}

    def __init__(self, n_heads: int | None = None, square_grid: bool = False, keep_blank_tiles: bool = False) -> None:
        self.n_heads = n_heads
        self.square_grid = square_grid
        self.keep_blank_tiles = keep_blank_tiles

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds the teacher of a one-channel DINO transformer.

        DINO's own training code writes the state of the gradient scaler, which this one's files lack: CHAMMI-75's
        checkpoints are told by it. A file without it whose teacher has no `module.` before its names could be of both.
        """
        teacher = checkpoint.content.get("teacher")
        if not isinstance(teacher, Mapping) or "fp16_scaler" in checkpoint.content:
            return False
        tensors = split_prefixes(teacher, *_PREFIXES)
        return is_vit(tensors, lambda n: n == 1) and "norm.weight" in tensors and "blocks.0.ls1.gamma" not in tensors

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder from the teacher; the DINO head (`head.*`) is left out."""
        source = str(checkpoint.path)
        if isinstance(checkpoint.content.get("student"), Mapping) and "teacher" not in checkpoint.content:
            raise WeightsError(f"{source} holds a student and no teacher; uniDINO's features are the teacher's.")
        tensors = without(split_prefixes(checkpoint.entry("teacher"), *_PREFIXES, ""), "head.")
        network = build(tensors, source, "uniDINO encoder", n_heads=self.n_heads)
        fill(network, tensors, source)
        side = native_size(tensors, source, "uniDINO encoder")
        normalizer = Chain([Divide(_WHITE)], input_domain="uint16")
        encoder = Encoder(BagOfChannels(network), normalizer, input_size_px=None, recipe=self.recipe(side))
        encoder.card = {"exported": "teacher"}
        return encoder.eval()

    def recipe(self, tile_size_px: int) -> Recipe:
        """Return how fields are cut.

        Args:
            tile_size_px: Side of a tile.
        """
        blank = None if self.keep_blank_tiles else EmptyRule(threshold="zero")
        tiling = "square_grid" if self.square_grid else "grid"
        return Recipe(CropRule("tile", tile_size_px, tiling=tiling, skip_empty=blank))  # type: ignore[arg-type]

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors under timm's names."""
        return state_of(encoder)

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take the heads of the record, whose tiles are counted by the authors' loop."""
        if not str(record.get("fixture", "")).startswith(cls.fixture):
            return None
        return cls(n_heads=record["constructor"]["num_heads"], square_grid=True)

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute the features of whole images, or of the tiles of fields and their mean."""
        if "images" in inputs:
            images = inputs["images"]
            return {"features": embed(encoder, list(images), [["other"] * images.shape[1]] * len(images))}
        fields = {name: value for name, value in inputs.items() if name.startswith("field")}
        outputs: dict[str, Tensor] = {}
        for name, given in fields.items():
            field = given.clone()
            if "zero_box_in_channel_0" in inputs:
                top, bottom, left, right = inputs["zero_box_in_channel_0"]
                field[0, top:bottom, left:right] = 0
            # the first channel decides what is blank: it goes by the name of the nucleus
            others = [word for word in channel_vocabulary() if word != "nucleus"]
            names = ["nucleus", *others][: len(field)]
            outputs[f"tiles_of_{name}"] = tile_features(encoder, field, names, encoder.recipe.crops)
        tiles = torch.cat(list(outputs.values()))
        return {**outputs, "features": tiles.nanmean(0, keepdim=True)}
