"""Encoders that others trained with the public code of CHAMMI-75, DINO, DINOv2, MAE, solo-learn and lightly.

Source: the containers stand in `public_layouts`. Transformers of timm's, Meta's and torchvision's names convert, and
ResNets. The number of channels is read off the first projection: one is a bag of channels, three a bag of grey
pictures, and any other number fixed channels, whose names have to be given. What no file shows is never guessed: heads,
epsilon and what was done to pixels are read from the arguments that the code saved, or asked for by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from morphem.backbones.any_timm import AnyTimm
from morphem.backbones.base import Backbone
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.channels.fixed_channels import FixedChannels
from morphem.channels.rgb_bag import IMAGENET_MEAN, IMAGENET_STD, RGBBagOfChannels
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError, unknown_name
from morphem.normalizers import DatasetNormalize, Normalizer, SelfNormalize
from morphem.pixel_steps import Chain, Divide
from morphem.zoo.base import ByHand, Checkpoint, Pretrained, Record
from morphem.zoo.public_layouts import (
    REQUIRED,
    Network,
    authors_names,
    features_alone,
    find_networks,
    renamed,
    resnet_name,
    said_architecture,
    strangers,
    zero_class_row,
)
from morphem.zoo.shapes import mlp_ratio
from morphem.zoo.strictness import load_renamed, needed, without_memory

Pixels = Literal["imagenet", "per_plane", "full_scale"]
_PIXELS = ("imagenet", "per_plane", "full_scale")
_SHOWN = 5
_EPS = 1e-6
_SAID_HEADS = {
    **{f"{kind}_tiny": 3 for kind in ("vit", "deit")},
    **{f"{kind}_small": 6 for kind in ("vit", "deit")},
    "vit_base": 12,
    "vit_large": 16,
    "vit_giant2": 24,
    **{f"{kind}vit_base_patch16": 12 for kind in ("", "mae_")},
    **{f"{kind}vit_large_patch16": 16 for kind in ("", "mae_")},
    **{f"{kind}vit_huge_patch14": 16 for kind in ("", "mae_")},
    "mae_vit_base_patch16_dec512d8b": 12,
    "mae_vit_large_patch16_dec512d8b": 16,
    "mae_vit_huge_patch14_dec512d8b": 16,
}
"""Heads of the networks that DINO's (`arch`) and MAE's (`model`) code can name; all have the epsilon 1e-6."""


class PublicCode(Pretrained):
    """A network inside a training checkpoint; heads, decoders and the states of losses are left out.

    Args:
        network: Which network, where there are several, for example `teacher`. Where not given: of `student` and
            `teacher` entries the teacher, as DINO and DINOv2 evaluate it, and of `backbone` and `momentum_backbone` the
            first, as solo-learn does.
        n_heads: Attention heads; from the saved arguments where the code saves them (DINO, MAE).
        layer_norm_eps: The same: 1e-6 in the code of DINO, DINOv2, MAE, timm and torchvision; 1e-5 is torch's default.
        channels: What the input channels show, by name or alias, in the order of the weights; needed but for one
            channel and for three. Three named channels are fixed channels, not colours.
        pixels: What was done to pixels: `imagenet`, divided by 255, ImageNet's mean and deviation of each colour;
            `per_plane`, z-score of every plane, as CHAMMI-75's code does; `full_scale`, divided by 255. Where not
            given: `imagenet` for three colours; else it has to be given, or mean and std.
        mean: Of all channels, in units of pixel / 255, in place of `pixels`; with `std`.
        std: The same, above 0.
        input_size_px: Planes are resized to this side; that of the stored positions where not given, 224 for ResNets.
        pooling: `class`, the class token; `mean`, the mean of all patch tokens after the last normalisation.
        position_offset: How positions are resampled for other sizes, see `VisionTransformer`. DINO: 0.1; DINOv2 with
            registers and timm: 0.
        position_antialias: The same.
        ignore: Beginnings of further names of tensors to leave out.

    Raises:
        ConfigError: If settings are unknown, out of range or exclude each other.
    """

    generic: ClassVar[bool] = True
    records: ClassVar[tuple[Record, ...]] = (
        Record(
            name="public-code",
            summary="A training checkpoint of your own: DINO, DINOv2, MAE, solo-learn, lightly or CHAMMI-75",
            location=ByHand(
                page="https://github.com/facebookresearch/dino",
                file="checkpoint.pth",
                words="give the file of your training by its path",
            ),
            license="of whoever trained it",
            restricted=False,
            citation="of whoever trained it",
            source="https://github.com/facebookresearch/dino, mae, dinov2; vturrisi/solo-learn; lightly-ai/lightly",
            exported="unknown",
            input_domain="uint8",
            preparation="as told: ImageNet's mean and deviation, z-score per plane, or divided by 255",
            native_size_px=None,
            pooling="class token or mean of patches, as told (384 features in a ViT-S); mean of a ResNet's map",
            channel_rule="one: any channels; three: any channels as grey pictures; else those that are named",
            embed_dim=384,
        ),
    )

    def __init__(
        self,
        network: str | None = None,
        n_heads: int | None = None,
        layer_norm_eps: float | None = None,
        channels: Sequence[str] | None = None,
        pixels: Pixels | None = None,
        mean: float | None = None,
        std: float | None = None,
        input_size_px: int | None = None,
        pooling: Literal["class", "mean"] = "class",
        position_offset: float = 0.1,
        position_antialias: bool = False,
        ignore: Sequence[str] = (),
    ) -> None:
        if pixels is not None and pixels not in _PIXELS:
            raise ConfigError(f"public_code: pixels='{pixels}' must be one of {', '.join(_PIXELS)}.")
        if (mean is None) != (std is None) or (mean is not None and pixels is not None):
            raise ConfigError("public_code: give mean and std together, and without pixels; they take its place.")
        if n_heads is not None and n_heads < 1:
            raise ConfigError(f"public_code: n_heads={n_heads} must be at least 1.")
        self.network = network
        self.n_heads = n_heads
        self.layer_norm_eps = layer_norm_eps
        self.channels = None if channels is None else tuple(channels)
        self.pixels = pixels
        self.mean = mean
        self.std = std
        self.input_size_px = input_size_px
        self.pooling: Literal["class", "mean"] = pooling
        self.position_offset = position_offset
        self.position_antialias = position_antialias
        self.ignore = tuple(ignore)

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds a transformer or a ResNet where a known training code puts it."""
        return bool(find_networks(checkpoint.content))

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder from a training checkpoint, or from a network alone.

        Args:
            checkpoint: The file.

        Raises:
            WeightsError: If it holds no network, several without saying which, or tensors of no known part; or if it
                does not say a fact that was not given.
        """
        source = str(checkpoint.path)
        found = find_networks(checkpoint.content)
        if not found:
            raise WeightsError(
                f"{source} holds no transformer or ResNet where DINO, DINOv2, MAE, solo-learn, lightly or CHAMMI-75 "
                f"put theirs; it holds {', '.join(list(map(str, checkpoint.content))[:_SHOWN]) or 'nothing'}."
            )
        chosen = found[self._choose(found, source)]
        surplus = strangers(chosen, found, self.ignore)
        if surplus:
            more = f" and {len(surplus) - _SHOWN} more" if len(surplus) > _SHOWN else ""
            raise WeightsError(
                f"{source} holds {len(surplus)} tensors of no known part ({', '.join(surplus[:_SHOWN])}{more}); "
                "leave them out with ignore=[...] if they make no feature."
            )
        where = f"{source} ({chosen.name})"
        needed(chosen.tensors, REQUIRED[chosen.layout], where, "network of a public training code")
        used = replace(chosen, tensors=self._used(chosen))
        tensors, chunks = renamed(used, where)
        card: dict[str, Any] = {"layout": chosen.layout, "key_prefix": chosen.prefix, "chunks": chunks}
        backbone: AnyTimm | VisionTransformer
        if chosen.layout.startswith("resnet"):
            with without_memory():
                backbone = self._resnet(tensors, where)
            first, side = tensors["conv1.weight"], 224
        else:
            card["registers"] = "register_tokens" if "register_tokens" in chosen.tensors else "reg_token"
            card["no_class_row"] = zero_class_row(tensors)
            first = tensors["patch_embed.proj.weight"]
            with without_memory():
                backbone, side = self._transformer(tensors, said_architecture(checkpoint.content), where)
        load_renamed(backbone.network, used.tensors, lambda _: tensors, lambda state: _theirs(state, card), where)
        strategy = self._strategy(backbone, first.shape[1], where)
        encoder = Encoder(strategy, self._normalizer(first.shape[1], where), self.input_size_px or side).eval()
        encoder.card = {**card, "exported": chosen.name if chosen.name in ("student", "teacher") else "unknown"}
        return encoder

    def _used(self, network: Network) -> dict[str, Tensor]:
        """Return what makes features, without what the user leaves out."""
        left = self.ignore
        return {k: v for k, v in features_alone(network.tensors).items() if not f"{network.prefix}{k}".startswith(left)}

    def _choose(self, found: Mapping[str, Network], source: str) -> str:
        if self.network is not None:
            if self.network not in found:
                raise WeightsError(f"{source}: {unknown_name('network', self.network, found)}")
            return self.network
        if len(found) == 1:
            return next(iter(found))
        if set(found) == {"student", "teacher"} and all(
            not network.name.endswith("backbone") for network in found.values()
        ):
            return "teacher"
        if set(found) == {"backbone", "momentum_backbone"}:
            return "backbone"
        names = ", ".join(found)
        raise WeightsError(
            f"{source} holds {len(found)} networks ({names}); say which with network='{next(iter(found))}'."
        )

    def _transformer(
        self, tensors: Mapping[str, Tensor], said: str | None, source: str
    ) -> tuple[AnyTimm | VisionTransformer, int]:
        width, n_channels, patch, _ = tensors["patch_embed.proj.weight"].shape
        n_heads, eps = self._unseen(width, said, source)
        side = round((tensors["pos_embed"].shape[1] - 1) ** 0.5) * patch
        depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
        mlp = tensors.get("blocks.0.mlp.fc1.weight")
        ratio = None if mlp is None else mlp_ratio(len(mlp), width)
        if "fc_norm.weight" in tensors:
            return self._mean_then_norm(tensors, side, depth, n_heads, eps, source), side
        network = VisionTransformer(
            "vit_small_patch16_224",
            patch_size_px=patch,
            image_size_px=side,
            embed_dim=width,
            depth=depth,
            n_heads=n_heads,
            in_channels=n_channels,
            registers=tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
            layer_scale=1.0 if "blocks.0.ls1.gamma" in tensors else None,
            qkv_bias="blocks.0.attn.qkv.bias" in tensors,
            layer_norm_eps=eps,
            mlp_ratio=ratio,
            pooling=self.pooling,
            position_offset=self.position_offset,
            position_antialias=self.position_antialias,
        )
        return network, side

    def _mean_then_norm(
        self, tensors: Mapping[str, Tensor], side: int, depth: int, n_heads: int, eps: float, source: str
    ) -> AnyTimm:
        """Build a transformer that MAE's code fine-tuned: the mean of the patches is normalised (`fc_norm`)."""
        if eps != _EPS:
            raise WeightsError(f"{source} normalises the mean of its patches (fc_norm), which converts with 1e-6 only.")
        width, n_channels, patch, _ = tensors["patch_embed.proj.weight"].shape
        settings = {
            "patch_size": patch,
            "img_size": side,
            "embed_dim": width,
            "depth": depth,
            "num_heads": n_heads,
            "mlp_ratio": mlp_ratio(len(tensors["blocks.0.mlp.fc1.weight"]), width),
            "global_pool": "avg",
            "dynamic_img_size": True,
        }
        return AnyTimm("vit_small_patch16_224", n_channels, settings)

    def _unseen(self, width: int, said: str | None, source: str) -> tuple[int, float]:
        """Return heads and epsilon: as given, as the saved arguments name them, or refuse."""
        heads = self.n_heads if self.n_heads is not None else _SAID_HEADS.get(said or "")
        known = said in _SAID_HEADS
        eps = self.layer_norm_eps if self.layer_norm_eps is not None else (_EPS if known else None)
        if heads is not None and eps is not None:
            if width % heads:
                raise WeightsError(
                    f"{source}: n_heads={heads} does not divide the width {width}; give the right n_heads."
                )
            return heads, eps
        lacking = [name for name, value in (("n_heads", heads), ("layer_norm_eps", eps)) if value is None]
        hint = f"heads of 64 numbers would be {width // 64}" if width % 64 == 0 else f"it divides {width}"
        hints = {
            "n_heads": f"n_heads ({hint}; MAE and MoCo v3 of solo-learn have 12 up to ViT-B)",
            "layer_norm_eps": "layer_norm_eps (1e-6 in the code of DINO, DINOv2, MAE, timm and torchvision)",
        }
        raise WeightsError(
            f"{source} does not say {' and '.join(lacking)}, which change the features and which no shape shows; give "
            f"{' and '.join(hints[name] for name in lacking)}."
        )

    def _resnet(self, tensors: Mapping[str, Tensor], source: str) -> AnyTimm:
        if self.n_heads is not None or self.layer_norm_eps is not None or self.pooling != "class":
            raise ConfigError(
                f"n_heads, layer_norm_eps and pooling have no effect on {source}, a ResNet; leave them out."
            )
        return AnyTimm(resnet_name(tensors, source), tensors["conv1.weight"].shape[1])

    def _strategy(self, backbone: Backbone, n_channels: int, source: str) -> ChannelStrategy:
        if n_channels == 1 or (n_channels == 3 and self.channels is None):
            if self.channels is not None:
                raise ConfigError(
                    f"channels has no effect on {source}, which takes any channel, one at a time; leave it out."
                )
            if n_channels == 1:
                return BagOfChannels(backbone)
            colours = self.pixels in (None, "imagenet") and self.mean is None
            return RGBBagOfChannels(
                backbone, IMAGENET_MEAN if colours else (0.0,) * 3, IMAGENET_STD if colours else (1.0,) * 3
            )
        if self.channels is None or len(self.channels) != n_channels:
            given = (
                "not given" if self.channels is None else f"{len(self.channels)} are given ({', '.join(self.channels)})"
            )
            raise WeightsError(
                f"{source} takes {n_channels} channels; their names, in the order of the weights, are {given}: say "
                "channels=[...]."
            )
        if not isinstance(backbone, VisionTransformer):
            raise WeightsError(
                f"{source} takes {n_channels} named channels, which only a vision transformer with a class token can; "
                "ResNets and transformers with fc_norm convert with one channel or three colours."
            )
        projection = backbone.network.patch_embed.proj
        with without_memory():
            strategy = FixedChannels(backbone, self.channels)
        backbone.network.patch_embed.proj = projection  # widening would draw it anew
        return strategy

    def _normalizer(self, n_channels: int, source: str) -> Normalizer:
        if self.mean is not None and self.std is not None:
            return DatasetNormalize(self.mean, self.std)
        colours = n_channels == 3 and self.channels is None
        pixels = self.pixels or ("imagenet" if colours else None)
        if pixels is None or (pixels == "imagenet" and not colours):
            raise WeightsError(
                f"{source} does not say what was done to pixels, and its {n_channels} channels are no colours; give "
                "pixels='per_plane' (z-score of every plane), pixels='full_scale' (divided by 255), or mean and std."
            )
        return SelfNormalize() if pixels == "per_plane" else Chain([Divide(255.0)])

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the network's tensors under the names that they have in their entry of the checkpoint.

        Wrappers of FSDP, compilation and activation checkpointing are not put back into the names.
        """
        backbone: Any = encoder.channels.backbone
        theirs = _theirs(backbone.network.state_dict(), encoder.card)
        return {f"{encoder.card['key_prefix']}{name}": tensor for name, tensor in theirs.items()}

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Say no: golden records belong to the families of released weights."""
        return None

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute nothing: no golden record is of this family."""
        return {}


def _theirs(state: Mapping[str, Tensor], card: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give the tensors of timm's network the names that its file has, without the prefix."""
    tensors = dict(state)
    if card.get("no_class_row"):
        tensors["pos_embed"] = tensors["pos_embed"][:, 1:].clone()
    return authors_names(tensors, card["layout"], card["chunks"], card.get("registers", "reg_token"))
