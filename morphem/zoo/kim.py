"""Kim et al.: transformers on the five channels of Cell Painting, trained by DINO, MAE and SimCLR.

Source: Kim et al., Bayer-Group/CellPaintSSL at a2625b0 (https://github.com/Bayer-Group/CellPaintSSL, BSD-3-Clause);
weights in a Dropbox archive that its README names (CC-BY-NC-4.0). Pixels are divided by 65535 and normalised by mean
and standard deviation of each channel: the same for all models at inference, although DINO and SimCLR were trained with
another pair. Fields are cut into tiles of the native size without overlap; a tile is kept where at least 1 % of its
pixels have DNA above 0.7 times Otsu's threshold, the middle one where none would be. A row is the mean over tiles.
Left out of the files: `head.*` (DINO), `decoder*`, `mask_token` and `norm.*` (MAE), `mlp.*` (SimCLR).

About MAE ViT-S: the pre-training had biases of queries, keys and values, but the network that the authors build for
inference has none and their loader drops the trained ones without a word, so the published features are computed
without them. Here they are left out too where the file is a ViT-S, since that is the network whose features were
published; `qkv_bias=True` computes with the trained biases, as the pre-training did. ViT-B keeps them in both.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from morphem.channels.fixed_channels import FixedChannels
from morphem.data.crops import CropRule
from morphem.data.emptiness import EmptyRule
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError
from morphem.normalizers import DatasetNormalize
from morphem.pixel_steps import Chain, Divide
from morphem.recipe import Recipe
from morphem.vocabulary import resolve_distinct
from morphem.zoo.base import ByHand, Checkpoint, Pretrained, Record
from morphem.zoo.replaying import embed
from morphem.zoo.single_vit import Tensors, build, fill, is_vit, native_size, split_prefixes, state_of, without

CHANNELS = ("Mito", "AGP", "RNA", "ER", "DNA")
"""The authors' names, in their order."""
MEAN = (0.12528631, 0.17596765, 0.14736995, 0.13445823, 0.08349566)
STD = (0.12594905, 0.15605405, 0.16031352, 0.15751939, 0.15773378)
"""Of pixels in 0 to 1, by which the authors normalise at inference."""

_WHITE = 65535.0
_PAGE = "https://github.com/Bayer-Group/CellPaintSSL"
_WORDS = {
    "vits16": "The authors share an archive of about 6 GB, whose link their README has; unpack it and rename the file.",
    "vitb16": "The authors' archive holds ViT-S alone; ask them for ViT-B, or train it with their public code.",
}
_SMALL = 384  # width of ViT-S


def _record(method: str, size: str, pooling: str, exported: Any, **facts: Any) -> Record:
    title, width, n_heads = {"vits16": ("ViT-S/16", 384, 6), "vitb16": ("ViT-B/16", 768, 12)}[size]
    return Record(
        name=f"kim-{method}-{size}",
        summary=f"Kim et al.: {method.upper()}, {title} on five channels of Cell Painting: {width} features per image",
        location=ByHand(_PAGE, f"kim_{method}_{size}{'.ckpt' if method == 'simclr' else '.pth'}", _WORDS[size]),
        license="cc-by-nc-4.0",
        restricted=True,
        citation="Kim et al. 2023, Self-supervision advances morphological profiling, doi 10.1101/2023.04.28.538691",
        source=f"{_PAGE} at a2625b0",
        exported=exported,
        input_domain="uint16",
        preparation="divided by 65535, mean and deviation of each channel; tiles of 224, those without cells left out",
        native_size_px=224,
        pooling=pooling,
        channel_rule="exactly mitochondria, AGP, RNA, ER, DNA",
        embed_dim=width,
        facts={"n_heads": n_heads, **facts},
        vocabulary=CHANNELS,
    )


class _Kim(Pretrained):
    """What the three trainings share.

    Args:
        n_heads: Attention heads; where not given, 6 for ViT-S, 12 for ViT-B, by the width.
        channels: What the input channels show, by name or alias, in the order of the weights.
        mean: Of each channel, pixels in 0 to 1.
        std: Of each channel, above 0.

    Raises:
        ConfigError: If there are not as many means and deviations as channels.
    """

    not_compared: ClassVar[Mapping[str, str]] = {}
    fixture: ClassVar[str]

    def __init__(
        self,
        n_heads: int | None = None,
        channels: Sequence[str] = CHANNELS,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        if not len(channels) == len(mean) == len(std):
            raise ConfigError(
                f"kim: {len(channels)} channels need as many means and deviations, not {len(mean)} and {len(std)}."
            )
        self.n_heads = n_heads
        self.channels = tuple(channels)
        self.mean = tuple(mean)
        self.std = tuple(std)

    def _encoder(self, tensors: Tensors, source: str, **settings: Any) -> Encoder:
        """Build the encoder of tensors under timm's names."""
        network = build(tensors, source, "encoder of Kim et al.", n_heads=self.n_heads, **settings)
        count = network.in_channels
        if count != len(self.channels):
            raise WeightsError(
                f"{source} takes {count} channels, but {len(self.channels)} are named ({', '.join(self.channels)}); "
                "name them in the order of the weights, with mean and std: channels=[...], mean=[...], std=[...]."
            )
        fill(network, tensors, source)
        types = resolve_distinct(self.channels, "channels")
        mean, std = dict(zip(types, self.mean, strict=True)), dict(zip(types, self.std, strict=True))
        steps = Chain([Divide(_WHITE), DatasetNormalize(mean, std, divide_by=1.0)], input_domain="uint16")
        side = native_size(tensors, source, "encoder of Kim et al.")
        empty = EmptyRule("nucleus" if "nucleus" in types else types[0])
        recipe = Recipe(CropRule("tile", side, tiling="grid", skip_empty=empty))
        return Encoder(FixedChannels(network, types), steps, input_size_px=None, recipe=recipe).eval()

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors under timm's names."""
        return state_of(encoder)

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take heads, channels and statistics of the record."""
        if not str(record.get("fixture", "")).startswith(cls.fixture):
            return None
        statistics = record["normalisation"]
        return cls(record["constructor"]["num_heads"], record["channel_names"], statistics["mean"], statistics["std"])

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute the features of crops, and their mean."""
        crops = inputs["crops"]
        found = embed(encoder, list(crops), [list(range(crops.shape[1]))] * len(crops))
        return {"crop_features": found, "features": found.double().mean(0, keepdim=True).to(found.dtype)}


class KimDINO(_Kim):
    """DINO: the class token of the teacher; planes of any size that its patches divide."""

    records: ClassVar[tuple[Record, ...]] = tuple(
        _record("dino", size, "class token after the final LayerNorm", "teacher") for size in ("vits16", "vitb16")
    )
    fixture: ClassVar[str] = "kim_dino"

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds the teacher of a DINO transformer of five channels."""
        teacher = checkpoint.content.get("teacher")
        tensors = split_prefixes(teacher, "module.backbone.", "backbone.") if isinstance(teacher, Mapping) else {}
        return is_vit(tensors, _is_five) and "norm.weight" in tensors and "blocks.0.ls1.gamma" not in tensors

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder from the teacher; the DINO head (`head.*`) is left out."""
        content = checkpoint.entry("teacher")
        tensors = without(split_prefixes(content, "module.backbone.", "backbone.", ""), "head.")
        return self._encoder(tensors, str(checkpoint.path))


class KimMAE(_Kim):
    """MAE: the mean of the patch tokens after the last block, without a final normalisation.

    The authors accept the native size alone; fixed positions of column and row are computed for other sizes.

    Args:
        n_heads: Attention heads; where not given, 6 for ViT-S, 12 for ViT-B, by the width.
        channels: As for the others.
        mean: The same.
        std: The same.
        qkv_bias: Whether to compute with the trained biases of queries, keys and values. Where not given, as the
            authors do: without for ViT-S (width 384), with for other widths.
    """

    records: ClassVar[tuple[Record, ...]] = (
        _record("mae", "vits16", "mean of the patch tokens, no final LayerNorm", "only", qkv_bias=False),
        _record("mae", "vitb16", "mean of the patch tokens, no final LayerNorm", "only", qkv_bias=True),
    )
    fixture: ClassVar[str] = "kim_mae"

    def __init__(
        self,
        n_heads: int | None = None,
        channels: Sequence[str] = CHANNELS,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        qkv_bias: bool | None = None,
    ) -> None:
        super().__init__(n_heads, channels, mean, std)
        self.qkv_bias = qkv_bias

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds a masked autoencoder of five channels."""
        tensors = checkpoint.entry("model")
        return is_vit(tensors, _is_five) and "decoder_embed.weight" in tensors

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder; `decoder*`, `mask_token` and `norm.*` are left out, biases where `qkv_bias` says so."""
        tensors = without(checkpoint.under("", "model"), "decoder", "mask_token", "norm.")
        width = tensors["cls_token"].shape[-1] if "cls_token" in tensors else 0
        with_bias = width != _SMALL if self.qkv_bias is None else self.qkv_bias
        if not with_bias:
            tensors = {name: value for name, value in tensors.items() if not name.endswith("attn.qkv.bias")}
        encoder = self._encoder(
            tensors,
            str(checkpoint.path),
            positions="sincos_columns",
            pooling="mean",
            final_norm=False,
            qkv_bias=with_bias,
        )
        encoder.card = {"qkv_bias": "trained" if with_bias else "left out, as in the authors' inference"}
        return encoder

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take heads, channels, statistics and the use of biases of the record."""
        family = super().from_golden(record)
        if family is not None:
            family.qkv_bias = bool(record["architecture"]["qkv_bias_used"])
        return family


class KimSimCLR(_Kim):
    """SimCLR: timm's pooled output, the class token. The authors accept the native size alone."""

    records: ClassVar[tuple[Record, ...]] = tuple(
        _record("simclr", size, "class token after the final LayerNorm", "only") for size in ("vits16", "vitb16")
    )
    fixture: ClassVar[str] = "kim_simclr"

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file is a Lightning checkpoint of a transformer of five channels with a projector `mlp`."""
        state = checkpoint.content.get("state_dict")
        if not isinstance(state, Mapping) or not any(str(name).startswith("mlp.") for name in state):
            return False
        return is_vit(split_prefixes(state, "backbone."), _is_five)

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder; the projection head (`mlp.*`) is left out."""
        tensors = without(split_prefixes(checkpoint.entry("state_dict"), "backbone.", ""), "mlp.")
        return self._encoder(tensors, str(checkpoint.path))


def _is_five(n_channels: int) -> bool:
    return n_channels == len(CHANNELS)
