"""MorphEm: DINO, bag of channels, ViT-S/16, trained on all of CHAMMI-75.

Source: CaicedoLab/CHAMMI-75 at b84a4ec9 (https://github.com/CaicedoLab/CHAMMI-75), weights at
https://huggingface.co/CaicedoLab/MorphEm, both MIT.
Differs from it: no noise on saturated pixels by default. The authors' own evaluation divides by 255 before the step
that looks for the value 255, so there it never acts.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from morphem import weights
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.normalizers import SelfNormalize
from morphem.types import ChannelBatch
from morphem.zoo.base import Checkpoint, HubFile, Pretrained, Record

_HEAD = "head."
_PREFIXES = {"student": "module.backbone.", "teacher": "backbone."}
_NEEDED = ("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight")


class MorphEm(Pretrained):
    """The released encoder, and others of its family (its training checkpoints, other widths).

    Args:
        n_heads: Attention heads, which no shape shows: 6 for ViT-S (the release), 12 for ViT-B, 16 for ViT-L.
        network: Which network of a training checkpoint; the authors evaluate the student.
    """

    records: ClassVar[tuple[Record, ...]] = (
        Record(
            name="morphem",
            summary="DINO, bag of channels, ViT-S/16 on CHAMMI-75: 384 features per channel",
            location=HubFile("CaicedoLab/MorphEm", weights.WEIGHTS_FILE),
            license="mit",
            restricted=False,
            citation="CHAMMI-75, Caicedo lab",
            source="https://github.com/CaicedoLab/CHAMMI-75 at b84a4ec9",
            exported="unknown",
            input_domain="uint8",
            preparation="divided by 255, z-score per plane (eps 1e-7 on the variance), then resized to 224 (bilinear)",
            native_size_px=224,
            pooling="class token after the final LayerNorm, per channel",
            channel_rule="any channels, each on its own",
            embed_dim=384,
            facts={"n_heads": 6},
        ),
    )

    def __init__(self, n_heads: int = 6, network: Literal["student", "teacher"] = "student") -> None:
        self.n_heads = n_heads
        self.network = network

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds a one-channel DINO transformer, bare or as student and teacher."""
        tensors = _tensors(checkpoint, "student")
        projection = tensors.get("patch_embed.proj.weight")
        one_channel = isinstance(projection, Tensor) and projection.ndim == 4 and projection.shape[1] == 1
        return one_channel and all(name in tensors for name in _NEEDED)

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder from tensors under timm's names; the DINO head (`head.*`) is left out."""
        is_training = isinstance(checkpoint.content.get(self.network), Mapping)
        source = f"{checkpoint.path} ({self.network})" if is_training else str(checkpoint.path)
        tensors = {k: v for k, v in _tensors(checkpoint, self.network).items() if not k.startswith(_HEAD)}
        missing = [name for name in _NEEDED[:3] if name not in tensors]
        if missing:
            raise WeightsError(
                f"{source} is no MorphEm encoder: {', '.join(missing)} not among its {len(tensors)} tensors."
            )
        network = VisionTransformer("vit_small_patch16_224", n_heads=self.n_heads, **_architecture(tensors))
        weights.load_strictly(network.network, tensors, source)
        encoder = Encoder(BagOfChannels(network), SelfNormalize(), input_size_px=224, interpolation="bilinear").eval()
        if is_training:
            encoder.card = {"exported": self.network}
        return encoder

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors under timm's names."""
        network: torch.nn.Module = encoder.channels.backbone.network  # type: ignore[union-attr, assignment]
        return dict(network.state_dict())

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take the heads of `morphem_*` records of the one-channel DINO network."""
        if not str(record.get("fixture", "")).startswith("morphem_"):
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
        side = None if "no resize" in record["cases"][case]["words"].lower() or case == "domain_0_255" else 224
        divide_by = 1.0 if case == "domain_0_255" else 255.0
        outputs = {"features": _features(encoder, images, divide_by, side)}
        wanted = record["cases"][case]["outputs"]
        if "features_of_teacher" in wanted:
            teacher = type(self)(self.n_heads, "teacher").convert(checkpoint).to(next(encoder.parameters()).dtype)
            outputs["features_of_teacher"] = _features(teacher, images, divide_by, side)
        if "tokens_normalised_input" in wanted:
            plane = _normalised(images[:1, :1], divide_by, next(encoder.parameters()).dtype)
            backbone: VisionTransformer = encoder.channels.backbone  # type: ignore[assignment]
            outputs["tokens_normalised_input"] = plane
            outputs["tokens_embedded"] = backbone.embedded(plane)
            outputs["tokens_norm_patch"] = backbone.tokens(plane)[:, 1:]
        return outputs


def _features(encoder: Encoder, images: Tensor, divide_by: float, side: int | None) -> Tensor:
    dtype = next(encoder.parameters()).dtype
    n_images, n_channels = images.shape[:2]
    if dtype == torch.float32:
        names = [f"{i:02d}" for i in range(n_channels)]
        batch = ChannelBatch.from_planes([list(image) for image in images], [names] * n_images)
        own = Encoder(encoder.channels, SelfNormalize(divide_by=divide_by), input_size_px=side)
        return own.features(batch).reshape(n_images, -1)
    planes = _normalised(images, divide_by, dtype).flatten(0, 1)[:, None]
    if side is not None and planes.shape[-2:] != (side, side):
        planes = torch.nn.functional.interpolate(planes, (side, side), mode="bilinear", antialias=True)
    backbone: VisionTransformer = encoder.channels.backbone  # type: ignore[assignment]
    return backbone(planes).reshape(n_images, -1)  # type: ignore[no-any-return]


def _normalised(images: Tensor, divide_by: float, dtype: torch.dtype) -> Tensor:
    scaled = images.to(dtype) / divide_by
    mean = scaled.mean((-2, -1), keepdim=True)
    return (scaled - mean) / (scaled.var((-2, -1), correction=0, keepdim=True) + 1e-7).sqrt()


def _tensors(checkpoint: Checkpoint, network: str) -> dict[str, Any]:
    """Return the tensors of a network of a training checkpoint, or those of a flat file."""
    if isinstance(checkpoint.content.get(network), Mapping):
        return checkpoint.under(_PREFIXES[network], network)
    return checkpoint.under("")


def _architecture(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read width, depth, patch and native size off the shapes."""
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    grid = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    return {"embed_dim": width, "depth": depth, "patch_size_px": patch, "image_size_px": grid * patch}
