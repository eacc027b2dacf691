"""ChannelViT of insitro: all channels in one sequence, with one embedding per channel type; seven releases.

Source: insitro/ChannelViT at 1077a10 (`hubconf.py`, release v1.0.0), Bao et al. 2024, https://arxiv.org/abs/2309.16108.
The two classes of the authors, with and without channel sampling, differ in the layout of the channel table; sampling
itself acts in training alone.
Differs from it: every image has its own channels, where the class without sampling uses those of the first image for
all; and the trained grid of positions is not laid over several channels where their patches happen to be as many
(`accidental_positions` does it).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

from torch import Tensor

from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.normalizers import DatasetNormalize, Normalizer
from morphem.zoo.base import Checkpoint, Pretrained, Record, WebFile
from morphem.zoo.channel_tokens import Layout, channel_attention
from morphem.zoo.data_sets import BY_COUNT, DATA_SETS, DataSet, data_set, from_record
from morphem.zoo.replaying import altered, as_published, embed, entering, every_nth, is_of

_RELEASE = "https://github.com/insitro/ChannelViT/releases/download/v1.0.0/"
_LAYOUTS = {
    "with sampling": Layout("patch_embed.channel_embed.weight", "rows"),
    "without sampling": Layout("patch_embed.channel_embed", "map"),
}
_MEAN_STD = "mean and standard deviation of the data set, per channel"


def _record(name: str, file: str, what: str, facts: dict[str, Any], **changes: Any) -> Record:
    own = DATA_SETS[facts["data_set"]]
    base = Record(
        name=name,
        summary=f"ChannelViT, ViT-S, {what}: 384 features per image",
        location=WebFile(f"{_RELEASE}{file}.pth"),
        license="CC-BY-NC-4.0",
        restricted=True,
        citation="Bao et al. 2024, Channel Vision Transformers, ICLR, arXiv:2309.16108",
        source="https://github.com/insitro/ChannelViT at 1077a10",
        exported="only",
        input_domain=own.domain if own.domain != "any" else "unknown",
        preparation=f"values 0 to 255, minus mean, over standard deviation of each channel; {_MEAN_STD}; no resize",
        native_size_px=224,
        pooling="class token after the final LayerNorm",
        channel_rule=f"any of {len(own.names)} types: {', '.join(own.names[:8])}{', ...' * (len(own.names) > 8)}",
        embed_dim=384,
        facts=facts,
        vocabulary=own.names,
    )
    return replace(base, **changes)


_RGB = f"divided by 255, {_MEAN_STD} (ImageNet's), resized to 224 (bicubic)"
_BANDS = f"reflectances and radar as So2Sat stores them; {_MEAN_STD}; used at 32 px"
_JUMP = "supervised with channel sampling on JUMP-CP"


class ChannelViT(Pretrained):
    """The seven releases, and other sizes of both classes.

    Args:
        n_heads: Attention heads, which no shape shows. Where not given, those of the published network of that width.
        data_set: What the weights were trained on, which says channels, statistics and resize: `jumpcp`,
            `jumpcp_cellpaint`, `imagenet`, `camelyon`, `so2sat_random`, `so2sat_hard`, or a `DataSet`. Where not given,
            by the number of channels: 8, 5 and 3 are JUMP-CP, its five stains, ImageNet.
        accidental_positions: Also repeat what the authors' code does by accident; see `ChannelAttention`.
    """

    records: ClassVar[tuple[Record, ...]] = (
        _record(
            "channelvit-jumpcp",
            "cpjump_cellpaint_bf_channelvit_small_p8_with_hcs_supervised",
            f"{_JUMP}, five stains and bright-field, patch 8",
            {"n_heads": 6, "data_set": "jumpcp"},
        ),
        _record(
            "channelvit-jumpcp-cellpaint",
            "cpjump_cellpaint_channelvit_small_p8_with_hcs_supervised",
            f"{_JUMP}, five stains, patch 8",
            {"n_heads": 6, "data_set": "jumpcp_cellpaint"},
        ),
        _record(
            "channelvit-imagenet",
            "imagenet_channelvit_small_p16_with_hcs_supervised",
            "supervised with channel sampling on ImageNet, patch 16",
            {"n_heads": 6, "data_set": "imagenet"},
            preparation=_RGB,
        ),
        _record(
            "channelvit-imagenet-dino",
            "imagenet_channelvit_small_p16_DINO",
            "DINO without channel sampling on ImageNet, patch 16",
            {"n_heads": 6, "data_set": "imagenet"},
            preparation=_RGB,
            exported="unknown",
        ),
        _record(
            "channelvit-camelyon",
            "camelyon_channelvit_small_p8_with_hcs_supervised",
            "supervised with channel sampling on Camelyon17 (WILDS), patch 8",
            {"n_heads": 6, "data_set": "camelyon"},
            preparation=f"{_RGB}; the authors' statistics for Camelyon are not published, their code for RGB has these",
        ),
        _record(
            "channelvit-so2sat-random",
            "so2sat_channelvit_small_p8_with_hcs_random_split_supervised",
            "supervised with channel sampling on So2Sat, random split, patch 8",
            {"n_heads": 6, "data_set": "so2sat_random"},
            preparation=_BANDS,
        ),
        _record(
            "channelvit-so2sat-hard",
            "so2sat_channelvit_small_p8_with_hcs_hard_split_supervised",
            "supervised with channel sampling on So2Sat, hard split, patch 8",
            {"n_heads": 6, "data_set": "so2sat_hard"},
            preparation=_BANDS,
        ),
    )

    def __init__(
        self, n_heads: int | None = None, data_set: str | DataSet | None = None, accidental_positions: bool = False
    ) -> None:
        self.n_heads = n_heads
        self.data_set = data_set
        self.accidental_positions = accidental_positions

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file is a bare state of one of the two classes."""
        return any(layout.fits(checkpoint.content) for layout in _LAYOUTS.values())

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder from the bare state of either class."""
        tensors, source = checkpoint.under(""), str(checkpoint.path)
        layout = self._layout(tensors, source)
        own = self._data_set(layout.count(tensors), source)
        strategy = channel_attention(
            tensors, layout, own.channels, self.n_heads, source, accidental_positions=self.accidental_positions
        )
        encoder = Encoder(strategy, own.normalizer(), own.input_size_px, own.interpolation).eval()
        encoder.card = {"exported": "only", "table": layout.table_form}
        return encoder

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the state of the authors' class that the file was of."""
        layouts = {layout.table_form: layout for layout in _LAYOUTS.values()}
        return layouts[encoder.card["table"]].to_theirs(encoder.channels.state_dict())

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take heads, channels and statistics of the record."""
        if not is_of(record, "ChannelViT ", "channelvit_"):
            return None
        constructor = record["constructor"]
        return cls(constructor["num_heads"], from_record(record, constructor["in_chans"]))

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute a case; the images are normalised by the statistics of their numbers.

        The class without sampling reads the numbers of the first image for all, and its records take statistics by the
        place of a plane: both are put into words for our encoder, which does neither. `accidental_positions` is on.
        """
        images, numbers = list(inputs["images"]), inputs["channel_ids"].tolist()
        if encoder.card["table"] == "map":
            numbers = numbers[:1] * len(images)
            encoder = altered(encoder, normalizer=self._by_place(record, numbers[0]))
        encoder = as_published(encoder)
        backbone: Any = encoder.channels.backbone
        result, tokens = entering(backbone.network.blocks[0], lambda: embed(encoder, images, numbers, resize=False))
        return {"features": result, "tokens_embedded": every_nth(tokens, record, case)}

    @staticmethod
    def _by_place(record: Mapping[str, Any], numbers: list[int]) -> Normalizer:
        """Return a normaliser that gives each channel the statistics of its place in the image."""
        own = from_record(record, record["constructor"]["in_chans"])
        types = [own.types[number] for number in numbers]
        mean, std = (dict(zip(types, record["normalisation"][key], strict=False)) for key in ("mean", "std"))
        return DatasetNormalize(mean, std, own.divide_by)

    def _layout(self, tensors: Mapping[str, Tensor], source: str) -> Layout:
        found = [layout for layout in _LAYOUTS.values() if layout.table in tensors]
        if len(found) != 1:
            tables = " or ".join(layout.table for layout in _LAYOUTS.values())
            raise WeightsError(
                f"{source} is no ChannelViT encoder: it needs {tables} among its {len(tensors)} tensors."
            )
        return found[0]

    def _data_set(self, n_channels: int, source: str) -> DataSet:
        name = self.data_set or BY_COUNT.get(n_channels)
        if name is None:
            raise WeightsError(
                f"{source} has embeddings of {n_channels} channels, and nothing in it says of which; say "
                f"data_set=..., one of {', '.join(DATA_SETS)}."
            )
        return data_set(name)
