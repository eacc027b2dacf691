"""CHAMMI-75's bags of channels: MorphEm and its training checkpoints (DINO), and the encoders by MAE and SimCLR.

Source: CHAMMI-75, https://arxiv.org/abs/2512.20833, CaicedoLab/CHAMMI-75 at b84a4ec9
(https://github.com/CaicedoLab/CHAMMI-75); MorphEm at https://huggingface.co/CaicedoLab/MorphEm; all MIT. Each plane
goes alone through a transformer of one channel. Its pixels are divided by 255 and normalised by their own mean and
variance (epsilon 1e-7), then resized to the native size. Left out of the files: the DINO head (`head.*`), the decoder
and the mask token of MAE (`decoder*`, `mask_token`).
Differs from it: no noise on saturated pixels. The authors' own evaluation divides by 255 before the step that looks for
the value 255, so there it never acts.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from morphem import weights
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.normalizers import Normalizer, SelfNormalize
from morphem.pixel_steps import Chain, Divide, ZScore
from morphem.types import ChannelBatch
from morphem.zoo import chammi75_mae
from morphem.zoo.base import ByHand, Checkpoint, HubFile, Pretrained, Record
from morphem.zoo.replaying import altered, embed
from morphem.zoo.seen import network_batch
from morphem.zoo.single_vit import (
    PROJECTION,
    Tensors,
    build,
    fill,
    is_vit,
    network_of,
    split_prefixes,
    state_of,
    without,
)

_HEAD = "head."
_RESIZED_PX = 224  # the authors resize every plane to it, whatever the network was trained at
_PREFIXES = {"student": "module.backbone.", "teacher": "backbone."}
_SOURCE = "https://github.com/CaicedoLab/CHAMMI-75 at b84a4ec9"
_PREPARATION = "divided by 255, z-score per plane (eps 1e-7 on the variance), then resized to 224 (bilinear, antialias)"
_POOLING = "class token after the final LayerNorm, per channel"
_WORDS = "The authors keep these checkpoints in their project storage; ask there, or train one with their public code."
_SIZES = {"vits16": ("ViT-S/16", 384, 6), "vitb16": ("ViT-B/16", 768, 12), "vitl16": ("ViT-L/16", 1024, 16)}


def _record(method: str, words: str, size: str, exported: Literal["student", "only"], preparation: str) -> Record:
    title, width, n_heads = _SIZES[size]
    return Record(
        name=f"chammi75-{method}-boc-{size}",
        summary=f"{words}, bag of channels, {title} on CHAMMI-75: {width} features per channel",
        location=ByHand("https://github.com/CaicedoLab/CHAMMI-75", "checkpoint.pth", _WORDS),
        license="mit",
        restricted=False,
        citation="CHAMMI-75, https://arxiv.org/abs/2512.20833",
        source=_SOURCE,
        exported=exported,
        input_domain="uint8",
        preparation=preparation,
        native_size_px=224,
        pooling=_POOLING,
        channel_rule="any channels, each on its own",
        embed_dim=width,
        facts={"n_heads": n_heads},
    )


def _bag(
    tensors: Tensors, source: str, what: str, normalizer: Normalizer, after: Normalizer | None = None, **settings: Any
) -> Encoder:
    """Build the encoder of a file whose tensors have timm's names."""
    network = build(tensors, source, what, **settings)
    fill(network, tensors, source)
    return Encoder(BagOfChannels(network), normalizer, _RESIZED_PX, "bilinear", after_resize=after).eval()


def _features(encoder: Encoder, images: Tensor, resize: bool = True) -> Tensor:
    """Features of images, channels side by side."""
    channels = [["other"] * images.shape[1]] * len(images)
    return embed(encoder, list(images), channels, resize=resize)


def _says(record: Mapping[str, Any], case: str, name: str, words: str) -> bool:
    """Whether a case is of a kind, by its name or by its words."""
    return name in case or words in record["cases"][case]["words"].lower()


def _resized(record: Mapping[str, Any], case: str) -> bool:
    """Whether planes are resized in a case; words may speak of a resize that does nothing at the native size."""
    return not _says(record, case, "no_resize", "no resize")


class DINOBagOfChannels(Pretrained):
    """MorphEm, and the training checkpoints of DINO with a bag of channels.

    Args:
        n_heads: Attention heads, which no shape shows. Where not given, those of the width: 6 for ViT-S (the release),
            12 for ViT-B, 16 for ViT-L.
        network: Which network of a training checkpoint: `student`, which the authors evaluate, or `teacher`.
        divide_by: What pixels are divided by before they are normalised: 255 as in the authors' evaluation, 1 as in
            their training. It matters for nearly empty planes alone.
    """

    fixture: ClassVar[str] = "morphem_"
    records: ClassVar[tuple[Record, ...]] = (
        Record(
            name="morphem",
            summary="MorphEm: DINO, bag of channels, ViT-S/16 on CHAMMI-75: 384 features per channel",
            location=HubFile("CaicedoLab/MorphEm", weights.WEIGHTS_FILE),
            license="mit",
            restricted=False,
            citation="CHAMMI-75, https://arxiv.org/abs/2512.20833",
            source=_SOURCE,
            exported="unknown",
            input_domain="uint8",
            preparation=_PREPARATION,
            native_size_px=224,
            pooling=_POOLING,
            channel_rule="any channels, each on its own",
            embed_dim=384,
            facts={"n_heads": 6},
        ),
        *(_record("dino", "DINO", size, "student", _PREPARATION) for size in _SIZES),
    )
    not_compared: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self, n_heads: int | None = None, network: Literal["student", "teacher"] = "student", divide_by: float = 255.0
    ) -> None:
        self.n_heads = n_heads
        self.network = network
        self.divide_by = divide_by

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds a one-channel DINO transformer with its head, bare or as student and teacher."""
        content = checkpoint.content
        if isinstance(content.get("student"), Mapping) and isinstance(content.get("teacher"), Mapping):
            both = [checkpoint.under(prefix, name) for name, prefix in _PREFIXES.items()]
            return all(is_vit(tensors, lambda n: n == 1) and "norm.weight" in tensors for tensors in both)
        has_head = any(str(name).startswith(_HEAD) for name in content)
        return has_head and is_vit(content, lambda n: n == 1) and "blocks.0.ls1.gamma" not in content

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder from tensors under timm's names; the DINO head (`head.*`) is left out."""
        is_training = isinstance(checkpoint.content.get(self.network), Mapping)
        source = f"{checkpoint.path} ({self.network})" if is_training else str(checkpoint.path)
        tensors = (
            split_prefixes(checkpoint.content[self.network], "module.backbone.", "backbone.")
            if is_training
            else without(checkpoint.under(""), _HEAD)
        )
        encoder = _bag(
            tensors, source, "MorphEm encoder", SelfNormalize(divide_by=self.divide_by), n_heads=self.n_heads
        )
        if is_training:
            encoder.card = {"exported": self.network}
        return encoder

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors under timm's names."""
        return state_of(encoder)

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take the heads of records of the one-channel DINO network."""
        if not str(record.get("fixture", "")).startswith(cls.fixture):
            return None
        return cls(n_heads=record["constructor"]["num_heads"])

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute features of both networks where there are two, and the stages of the first plane."""
        images = inputs["images"]
        if _says(record, case, "domain_0_255", "without the division"):
            encoder = altered(encoder, normalizer=SelfNormalize(divide_by=1.0))
        resize = _resized(record, case)
        outputs = {"features": _features(encoder, images, resize)}
        wanted = record["cases"][case]["outputs"]
        if "features_of_teacher" in wanted:
            teacher = type(self)(self.n_heads, "teacher", self.divide_by).convert(checkpoint).to(encoder.dtype)
            outputs["features_of_teacher"] = _features(teacher, images, resize)
        if "tokens_normalised_input" in wanted:
            batch = network_batch(encoder, ChannelBatch.from_planes([[images[0, 0]]], [["other"]]))
            network = network_of(encoder)
            outputs["tokens_normalised_input"] = batch.planes
            outputs["tokens_embedded"] = network.embedded(batch.planes)
            outputs["tokens_norm_patch"] = network.tokens(batch.planes)[:, 1:]
        return outputs


class MAEBagOfChannels(Pretrained):
    """The masked autoencoders of CHAMMI-75 with a bag of channels; the feature is the class token without masking.

    The authors accept planes of the native size alone, which all planes are resized to. Their positions are sines and
    cosines of column and row, which are computed for other sizes where `input_size_px` of the encoder is changed.

    Args:
        n_heads: Attention heads; where not given, 6 for ViT-S, 12 for ViT-B, 16 for ViT-L, by the width.
    """

    fixture: ClassVar[str] = "chammi75_mae_boc"
    records: ClassVar[tuple[Record, ...]] = tuple(
        _record("mae", "Masked autoencoder", size, "only", _PREPARATION) for size in _SIZES
    )
    not_compared: ClassVar[Mapping[str, str]] = {}

    def __init__(self, n_heads: int | None = None) -> None:
        self.n_heads = n_heads

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds a one-channel masked autoencoder whose attention has no biases."""
        tensors = checkpoint.entry("model")
        return is_vit(tensors, lambda n: n == 1) and "decoder_embed.weight" in tensors and not _has_bias(tensors)

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder; decoder and mask token (`decoder*`, `mask_token`) are left out."""
        tensors = without(checkpoint.under("", "model"), *chammi75_mae.LEFT_OUT)
        return _bag(
            tensors,
            str(checkpoint.path),
            "MAE encoder of CHAMMI-75",
            SelfNormalize(),
            n_heads=self.n_heads,
            qkv_bias=_has_bias(tensors),
            positions="sincos_columns",
        )

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors under the authors' names, without decoder and mask token."""
        return state_of(encoder)

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take the heads of the record."""
        if not str(record.get("fixture", "")).startswith(cls.fixture):
            return None
        return cls(n_heads=record["constructor"]["num_heads"])

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute features, or the masked forward pass of training with the decoder of the file."""
        if "noise" in inputs:
            decoder = record["constructor"]["decoder_num_heads"]
            return chammi75_mae.masked(
                encoder, checkpoint.under("", "model"), decoder, inputs["images"], inputs["noise"]
            )
        return {"features": _features(encoder, inputs["images"], _resized(record, case))}


class SimCLRBagOfChannels(Pretrained):
    """The encoders of CHAMMI-75 trained by SimCLR; the network itself normalises once more what it sees (eps 1e-5).

    Args:
        n_heads: Attention heads; where not given, 6 for ViT-S, 12 for ViT-B, by the width.
    """

    fixture: ClassVar[str] = "chammi75_simclr_boc"
    records: ClassVar[tuple[Record, ...]] = tuple(
        _record("simclr", "SimCLR", size, "only", f"{_PREPARATION}, then z-score again (eps 1e-5)")
        for size in ("vits16", "vitb16")
    )
    not_compared: ClassVar[Mapping[str, str]] = {}

    def __init__(self, n_heads: int | None = None) -> None:
        self.n_heads = n_heads

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds a transformer with a three-dimensional patch projection and no channel tokens."""
        tensors = checkpoint.entry("model_state_dict")
        tokens = any("channel" in str(name) for name in tensors)
        return is_vit(tensors, lambda n: n == 1, axes=5) and not tokens and "norm.weight" in tensors

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder; the patch projection loses the axis of channels, which has one entry."""
        tensors, source = checkpoint.under("", "model_state_dict"), str(checkpoint.path)
        projection = tensors.get(PROJECTION)
        if projection is None or projection.ndim != 5 or tuple(projection.shape[1:3]) != (1, 1):
            raise WeightsError(
                f"{source} is no SimCLR encoder of CHAMMI-75: it needs {PROJECTION} of (D, 1, 1, P, P) among its "
                f"{len(tensors)} tensors."
            )
        flat = {**tensors, PROJECTION: projection[:, :, 0]}
        return _bag(flat, source, "SimCLR encoder of CHAMMI-75", SelfNormalize(), ZScore(1e-5), n_heads=self.n_heads)

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors under the authors' names."""
        state = state_of(encoder)
        return {**state, PROJECTION: state[PROJECTION][:, :, None]}

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take the heads of the record."""
        if not str(record.get("fixture", "")).startswith(cls.fixture):
            return None
        return cls(n_heads=record["constructor"]["num_heads"])

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute features, with the inner normalisation alone where the case says so."""
        inner = _says(record, case, "inner_normalisation_only", "straight into the network")
        if inner:
            encoder = altered(encoder, normalizer=Chain([Divide(255.0)]))
        return {"features": _features(encoder, inputs["images"], not inner and _resized(record, case))}


def _has_bias(tensors: Mapping[str, Any]) -> bool:
    return any(str(name).endswith("attn.qkv.bias") for name in tensors)
