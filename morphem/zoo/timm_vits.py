"""Vision transformers for everyday pictures as baselines: DINO, DINOv2, DINOv3 and supervised training on ImageNet.

Source: weights of Caron et al. 2021 (https://arxiv.org/abs/2104.14294), Darcet et al. 2023
(https://arxiv.org/abs/2309.16588), Simeoni et al. 2025 (https://arxiv.org/abs/2508.10104) and Steiner et al. 2021
(https://arxiv.org/abs/2106.10270) in timm's form (https://huggingface.co/timm), or in that of their authors; what is
done to pixels, CHAMMI-75's benchmark (`benchmarks/models.py` at b84a4ec): a bag of channels whose planes are repeated
to red, green and blue.
Differs from it: an image without a pixel above 0 stays black, where CHAMMI-75's division by its maximum gives NaN.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from morphem.backbones.any_timm import AnyTimm
from morphem.backbones.base import Backbone
from morphem.backbones.vit import VisionTransformer
from morphem.channels.rgb_bag import IMAGENET_MEAN, IMAGENET_STD, RGBBagOfChannels
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError
from morphem.pixel_steps import Chain, Divide, JointMaximum
from morphem.types import ChannelBatch
from morphem.zoo.base import Checkpoint, Pretrained, Record
from morphem.zoo.dinov3_names import dinov3_from_authors, dinov3_to_authors, is_dinov3
from morphem.zoo.public_layouts import in_chunks, without_chunks, zero_class_row
from morphem.zoo.shapes import mlp_ratio
from morphem.zoo.strictness import load_renamed, without_memory
from morphem.zoo.timm_records import RECORDS

_PROJECTION = "patch_embed.proj.weight"
_NEEDED = (_PROJECTION, "cls_token", "norm.weight")
_RELEASED_HEADS = {384: 6, 768: 12, 1024: 16}
_LEFT_OUT = ("head.", "head_dist.", "mask_token")
Brightness = Literal["image_maximum", "full_scale"]


class TimmViTs(Pretrained):
    """Transformers on three colours; classifiers (`head.*`) and the mask token are left out.

    Args:
        n_heads: Attention heads; where not given, of a width of 384, 768 or 1024 the 6, 12 or 16 of the releases, and
            files of other widths are refused.
        mean: Subtracted from red, green and blue after pixels were brought to 0 .. 1. Where not given, ImageNet's;
            files with a classifier are refused then, because supervised networks differ in it.
        std: What they are divided by then; given together with `mean`.
        position_offset: How positions are resampled for sizes other than the trained one; see `VisionTransformer`.
            Where not given, as the releases do: 0.1, and 0 for DINOv2 with registers. timm resamples with 0.
        position_antialias: The same: False, and True for DINOv2 with registers. timm resamples with True.
        layer_norm_eps: Of all normalisations; 1e-6 where not given. Without effect on DINOv3, which has 1e-5.
        input_size_px: Planes are resized to this side, bilinearly with antialiasing.
        brightness: What becomes 1: `image_maximum`, the brightest pixel of all channels of the image (CHAMMI-75);
            `full_scale`, 255 (the ImageNet baseline of uniDINO's paper, with mean 0 and std 1).

    Raises:
        ConfigError: If `brightness` is neither, `n_heads` is below 1, or one of `mean` and `std` is missing.
    """

    fixture: ClassVar[str] = "dinov2_boc"
    records: ClassVar[tuple[Record, ...]] = RECORDS

    def __init__(
        self,
        n_heads: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        position_offset: float | None = None,
        position_antialias: bool | None = None,
        layer_norm_eps: float | None = None,
        input_size_px: int = 224,
        brightness: Brightness = "image_maximum",
    ) -> None:
        if brightness not in ("image_maximum", "full_scale"):
            raise ConfigError(f"timm_vits: brightness='{brightness}' must be 'image_maximum' or 'full_scale'.")
        if n_heads is not None and n_heads < 1:
            raise ConfigError(f"timm_vits: n_heads={n_heads} must be at least 1.")
        if (mean is None) != (std is None):
            raise ConfigError("timm_vits: give mean and std together.")
        self.n_heads = n_heads
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)
        self.position_offset = position_offset
        self.position_antialias = position_antialias
        self.layer_norm_eps = layer_norm_eps
        self.input_size_px = input_size_px
        self.brightness: Brightness = brightness

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a flat file holds a vision transformer on three channels, in timm's names or in Meta's."""
        tensors = checkpoint.under("")
        projection = tensors.get(_PROJECTION)
        colours = projection is not None and projection.ndim == 4 and projection.shape[1] == 3
        placed = "pos_embed" in tensors or is_dinov3(tensors)
        return colours and placed and all(name in tensors for name in _NEEDED)

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder from a flat file in timm's names, or in those of DINO, DINOv2 or DINOv3.

        Args:
            checkpoint: The file.

        Raises:
            WeightsError: If keys are missing or left over.
        """
        source = str(checkpoint.path)
        tensors = {k: v for k, v in checkpoint.under("").items() if not k.startswith(_LEFT_OUT)}
        missing = [name for name in _NEEDED if name not in tensors]
        if missing:
            raise WeightsError(
                f"{source} is no vision transformer for pictures: {', '.join(missing)} not among its "
                f"{len(tensors)} tensors."
            )
        tensors, chunks = without_chunks(tensors, source)
        backbone: Backbone
        if is_dinov3(tensors):
            backbone, form = self._dinov3(tensors, source)
        else:
            backbone, form = self._plain(tensors, source)
        if self.mean is None and any(name.startswith("head.") for name in checkpoint.content):
            raise WeightsError(
                f"{source} has a classifier (head.*), and supervised networks differ in what was done to colours; give "
                "mean and std: 0.5 each for timm's augreg networks, ImageNet's for DeiT."
            )
        at_full_scale = self.brightness == "full_scale"
        encoder = Encoder(
            RGBBagOfChannels(backbone, self.mean or IMAGENET_MEAN, self.std or IMAGENET_STD),
            Chain([Divide(255.0)]) if at_full_scale else Chain([], input_domain="any"),
            input_size_px=self.input_size_px,
            after_resize=None if at_full_scale else JointMaximum(),
        ).eval()
        encoder.card = {"form": form, "chunks": chunks}
        return encoder

    def _plain(self, tensors: dict[str, Tensor], source: str) -> tuple[VisionTransformer, str]:
        """Build a transformer with a table of positions; return it with the form of its file."""
        if "pos_embed" not in tensors:
            raise WeightsError(f"{source} is no vision transformer with positions: it lacks pos_embed.")
        form = "meta" if "register_tokens" in tensors else "timm"
        ours = {("reg_token" if k == "register_tokens" else k): v for k, v in tensors.items()}
        form += ", no class row" if zero_class_row(ours) else ""
        width, n_channels, patch, _ = ours[_PROJECTION].shape
        mlp = ours.get("blocks.0.mlp.fc1.weight")
        with_registers = "reg_token" in ours
        offset = 0.0 if with_registers else 0.1
        with without_memory():
            network = VisionTransformer(
                "vit_small_patch16_224",
                patch_size_px=patch,
                image_size_px=round((ours["pos_embed"].shape[1] - 1) ** 0.5) * patch,
                embed_dim=width,
                depth=len({name.split(".")[1] for name in ours if name.startswith("blocks.")}),
                n_heads=self._heads(width, source),
                in_channels=n_channels,
                registers=ours["reg_token"].shape[1] if with_registers else 0,
                layer_scale=1.0 if "blocks.0.ls1.gamma" in ours else None,
                qkv_bias="blocks.0.attn.qkv.bias" in ours,
                layer_norm_eps=1e-6 if self.layer_norm_eps is None else self.layer_norm_eps,
                mlp_ratio=None if mlp is None else mlp_ratio(len(mlp), width),
                position_offset=offset if self.position_offset is None else self.position_offset,
                position_antialias=with_registers if self.position_antialias is None else self.position_antialias,
            )
        load_renamed(network.network, ours, dict, dict, source)
        return network, form

    def _heads(self, width: int, source: str) -> int:
        """Return the attention heads, as given or as released networks of a width have them."""
        heads = _RELEASED_HEADS.get(width) if self.n_heads is None else self.n_heads
        if heads is None:
            raise WeightsError(
                f"{source} has a width of {width}, which no released network has, and no shape shows its attention "
                "heads; give n_heads."
            )
        if width % heads:
            raise WeightsError(f"{source}: n_heads={heads} does not divide the width {width}; give the right n_heads.")
        return heads

    def _dinov3(self, tensors: dict[str, Tensor], source: str) -> tuple[AnyTimm, str]:
        """Build a DINOv3 transformer, timm's own; return it with the form of its file."""
        settings = (self.position_offset, self.position_antialias, self.layer_norm_eps)
        if any(value is not None for value in settings):
            raise ConfigError(
                f"position_offset, position_antialias and layer_norm_eps have no effect on {source}, a DINOv3 network; "
                "leave them out."
            )
        width, n_channels, patch, _ = tensors[_PROJECTION].shape
        n_heads = self._heads(width, source)
        if width % (4 * n_heads):
            raise WeightsError(
                f"{source}: n_heads={n_heads} does not give heads of a multiple of 4 numbers in a width of {width}"
                ", which DINOv3's rotary positions need; give the right n_heads."
            )
        form, ours = dinov3_from_authors(tensors, n_heads, source)
        arguments = {
            "patch_size": patch,
            "embed_dim": width,
            "depth": len({name.split(".")[1] for name in ours if name.startswith("blocks.")}),
            "num_heads": n_heads,
            "num_reg_tokens": ours["reg_token"].shape[1],
            "global_pool": "token",
            "dynamic_img_size": True,
        }
        biased = "_qkvb" if "blocks.0.attn.q_bias" in ours else ""
        with torch.random.fork_rng(devices=[]):  # its rotary positions are no weights: they have to be made
            network = AnyTimm(f"vit_small_patch16_dinov3{biased}", in_channels=n_channels, settings=arguments)
        load_renamed(network.network, ours, dict, dict, source)
        return network, form

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors under the names, and in the form, of the file that they came from."""
        form = encoder.card.get("form", "timm")
        backbone: Any = encoder.channels.backbone
        tensors = dict(backbone.network.state_dict())
        if form.startswith("dinov3"):
            return dinov3_to_authors(tensors, form)
        if "no class row" in form:
            tensors["pos_embed"] = tensors["pos_embed"][:, 1:].clone()
        theirs = {("register_tokens" if k == "reg_token" and "meta" in form else k): v for k, v in tensors.items()}
        return in_chunks(theirs, encoder.card.get("chunks", []))

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take the facts of `dinov2_boc*` records: heads, epsilon, resampling of positions, mean and std."""
        if not str(record.get("fixture", "")).startswith(cls.fixture):
            return None
        constructor, pixels = record["constructor"], record["normalisation"]
        return cls(
            n_heads=constructor["num_heads"],
            mean=pixels["mean"],
            std=pixels["std"],
            position_offset=constructor["interpolate_offset"],
            position_antialias=constructor["interpolate_antialias"],
            layer_norm_eps=record["architecture"]["layer_norm_eps"],
        )

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute the class tokens of all channels, with the authors' file and with timm's."""
        images, wanted = inputs["images"], record["cases"][case]["outputs"]
        n_images, n_channels = images.shape[:2]
        names = [f"plane {i}" for i in range(n_channels)]
        batch = ChannelBatch.from_planes([list(image) for image in images], [names] * n_images)
        outputs = {"features": encoder.features(batch).reshape(n_images, -1)}
        converted = [name for name in record.get("files", ()) if name.endswith(".timm.safetensors")]
        if "features_through_timm" in wanted and converted:
            rule = type(self)(self.n_heads, self.mean, self.std, 0.0, True, self.layer_norm_eps)
            through = rule.convert(Checkpoint.read(checkpoint.path.with_name(converted[0])))
            through = through.to(encoder.device, encoder.dtype)
            outputs["features_through_timm"] = through.features(batch).reshape(n_images, -1)
        return outputs
