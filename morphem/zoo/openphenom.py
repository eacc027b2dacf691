"""OpenPhenom: CA-MAE of Recursion, whose encoder tells no channels apart.

Source: recursionpharma/maes_microscopy at b3e68bb (code CC-BY-NC-4.0), weights at
https://huggingface.co/recursionpharma/OpenPhenom; Kraus et al. 2024, https://arxiv.org/abs/2404.10242. The authors' own
save function writes a torch pickle under the name `model.safetensors`; both forms are read.
Differs from it: images of other sizes than 256 are resized, and a network at another size gets the positions of its
grid, where the authors' code goes on counting through the table of eleven grids (`cut_positions`).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from morphem.backbones.parallel import MlpBias, ParallelTransformer
from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.data.schema import channel_vocabulary
from morphem.decoders import Canvas, DecoderRecipe, PerChannelDecoder
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError, unknown_name
from morphem.pixel_steps import Divide, JointMaximum, ZScore
from morphem.types import ChannelBatch
from morphem.zoo.base import Checkpoint, HubFile, Pretrained, Record
from morphem.zoo.decoding import load_exchanged, with_biases
from morphem.zoo.replaying import altered, any_types, embed, entering, every_nth, is_of, leaving, told_step
from morphem.zoo.strictness import depth_of, load_renamed, needed, without_memory

Features = Literal["mean", "channelwise"]
Scale = Literal["full", "joint_maximum"]
_PREFIX = "encoder.vit_backbone."
_LEFT_OUT = ("decoder.", "encoder_decoder_proj.", "decoder_pred.", f"{_PREFIX}fc_norm.")
_NAMES = {"cls_token": "first_token", "pos_embed": "position_table", "patch_embed.proj.": "patch_embed."}
_PROJECTION = "patch_embed.proj.weight"
_NEEDED = ("cls_token", "pos_embed", _PROJECTION, "blocks.0.mlp_bias", "blocks.0.q_norm.weight")
_DECODER_EPS = 1e-5  # of the released configuration; the default of the authors' code is 1e-6


class OpenPhenom(Pretrained):
    """The release, and other encoders of CA-MAE's code.

    Args:
        features: `mean` gives one vector per image, the mean of all patch tokens; `channelwise` one per channel, the
            mean of its own tokens, which have seen all channels.
        image_size_px: Side of the images that the network was built for, which shapes do not show.
        mlp_bias: `shifted` as the weights were trained (timm until January 2026); `hidden` as newer timm computes; see
            `ParallelTransformer`.
        scale: `full` divides pixels by 255; `joint_maximum` by the largest pixel over all channels of the image, as the
            evaluation of CHAMMI-75 does.
        cut_positions: At other sizes than `image_size_px`, do as the authors' code: see `ChannelAgnostic`. It acts only
            where images are not resized.
    """

    records: ClassVar[tuple[Record, ...]] = (
        Record(
            name="openphenom",
            summary="OpenPhenom, CA-MAE ViT-S/16 on RxRx3 and JUMP-CP: 384 features per image, or per channel",
            location=HubFile(
                "recursionpharma/OpenPhenom",
                "model.safetensors",
                "0f92333685f6e9f031b804c70fe246f9b05ae90d",
                ("config.json",),
            ),
            license="Recursion non-commercial end user licence",
            restricted=True,
            citation="Kraus et al. 2024, Masked Autoencoders for Microscopy, CVPR, arXiv:2404.10242",
            source="https://github.com/recursionpharma/maes_microscopy at b3e68bb",
            exported="only",
            input_domain="uint8",
            preparation="resized to 256 (bilinear), divided by 255, instance normalisation per plane (eps 1e-5)",
            native_size_px=256,
            pooling="mean of all patch tokens, no last normalisation; features=channelwise: mean per channel",
            channel_rule="any channels, up to 11 in training; nothing tells them apart",
            embed_dim=384,
            facts={"features": "mean"},
        ),
    )

    def __init__(
        self,
        features: Features = "mean",
        image_size_px: int = 256,
        mlp_bias: MlpBias = "shifted",
        scale: Scale = "full",
        cut_positions: bool = False,
    ) -> None:
        if features not in ("mean", "channelwise"):
            raise ConfigError(unknown_name("kind of OpenPhenom's features", features, ("mean", "channelwise")))
        if scale not in ("full", "joint_maximum"):
            raise ConfigError(unknown_name("scale of OpenPhenom", scale, ("full", "joint_maximum")))
        self.features = features
        self.image_size_px = image_size_px
        self.mlp_bias = mlp_bias
        self.scale = scale
        self.cut_positions = cut_positions

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds CA-MAE's encoder, as true safetensors or as a torch pickle."""
        tensors = checkpoint.under(_PREFIX, "state_dict")
        return all(name in tensors for name in _NEEDED)

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder.

        The decoder (`decoder.*`, `encoder_decoder_proj.*`, `decoder_pred.*`) and `fc_norm.*`, which the authors'
        features never pass, are left out.
        """
        everything, source = checkpoint.under("", "state_dict"), str(checkpoint.path)
        kept = {name: value for name, value in everything.items() if not name.startswith(_LEFT_OUT)}
        tensors = {name.removeprefix(_PREFIX): value for name, value in kept.items()}
        needed(tensors, _NEEDED, source, "OpenPhenom encoder")
        with without_memory():
            backbone = self._backbone(tensors)
        n_grids = _grids(tensors["pos_embed"], backbone, source)
        n_patches = backbone.trained_grid[0] * backbone.trained_grid[1]
        load_renamed(
            backbone,
            tensors,
            lambda theirs: _to_ours(theirs, n_patches),
            lambda state: _to_theirs(state, n_grids),
            source,
        )
        strategy = ChannelAgnostic(backbone, self.features, cut_positions=self.cut_positions)
        return self._encoder(strategy, n_grids)

    def _encoder(self, strategy: ChannelAgnostic, n_grids: int) -> Encoder:
        jointly = self.scale == "joint_maximum"
        encoder = Encoder(
            strategy,
            JointMaximum() if jointly else Divide(255.0),
            self.image_size_px,
            "bilinear",
            after_resize=ZScore(1e-5),
        ).eval()
        encoder.card = {"max_channels_of_training": n_grids}
        return encoder

    def _backbone(self, tensors: Mapping[str, Tensor]) -> ParallelTransformer:
        dim, _, _, patch = tensors[_PROJECTION].shape
        return ParallelTransformer(
            patch_size_px=patch,
            image_size_px=self.image_size_px,
            embed_dim=dim,
            depth=depth_of(tensors),
            n_heads=dim // len(tensors["blocks.0.q_norm.weight"]),
            mlp_ratio=len(tensors["blocks.0.mlp_bias"]) // dim,
            mlp_bias=self.mlp_bias,
        )

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors of the authors' encoder, with its prefix."""
        state = encoder.channels.backbone.state_dict()  # type: ignore[union-attr]
        theirs = _to_theirs(state, int(encoder.card["max_channels_of_training"]))
        return {f"{_PREFIX}{name}": value for name, value in theirs.items()}

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take the image size of the record."""
        if not is_of(record, "OpenPhenom", "openphenom"):
            return None
        return cls(image_size_px=record["constructor"]["encoder"]["img_size"])

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute a case; cases named after a compatibility option are computed with it."""
        images = inputs["images"]
        images = list(images[:, inputs["channels"]] if "channels" in inputs else images)
        options: dict[str, dict[str, Any]] = {
            "newer_timm": {"mlp_bias": "hidden"},
            "benchmark_wrapper": {"scale": "joint_maximum"},
            "other_size": {"cut_positions": True},
        }
        if case in options:
            changed = type(self)(image_size_px=self.image_size_px, **options[case])
            encoder = changed.convert(checkpoint).to(encoder.dtype)
        if "noise" in inputs:
            return _masked(encoder, checkpoint, record, case, images, inputs["noise"])
        backbone: Any = encoder.channels.backbone
        (mean, first), last = leaving(
            backbone.blocks[-1], lambda: entering(backbone.blocks[0], lambda: _embed(encoder, images, "mean"))
        )
        return {
            "features_mean": mean,
            "features_channelwise": _embed(encoder, images, "channelwise"),
            "tokens_embedded": every_nth(first, record, case),
            "tokens_last": every_nth(last, record, case),
        }


def _embed(encoder: Encoder, images: list[Tensor], features: Features) -> Tensor:
    """Embed images at their size with one of the two kinds of features; channels are not told apart."""
    strategy = encoder.channels
    assert isinstance(strategy, ChannelAgnostic)
    strategy = ChannelAgnostic(strategy.backbone, features, cut_positions=strategy.cut_positions)
    return embed(altered(encoder, channels=strategy), images, any_types(images), resize=False)


def _masked(
    encoder: Encoder,
    checkpoint: Checkpoint,
    record: Mapping[str, Any],
    case: str,
    images: list[Tensor],
    noise: Tensor,
) -> dict[str, Tensor]:
    """Hide patches as the authors do in training, encode what is seen and predict all pixels."""
    strategy = encoder.channels
    assert isinstance(strategy, ChannelAgnostic)
    batch: ChannelBatch
    _, batch = entering(strategy, lambda: embed(encoder, images, any_types(images), resize=False))
    (part,) = strategy.sequences(batch)
    ratio = float(checkpoint.sidecars.get("config.json", {}).get("mask_ratio", 0.75))
    n_seen = int(noise.shape[1] * (1 - ratio))
    visible = noise.argsort(dim=1)[:, :n_seen]
    with torch.no_grad():
        latent = strategy.backbone.encode(part.tokens.take_along_dim(visible[:, :, None], 1))
        count = len(images[0])
        types = torch.arange(count).expand(len(images), count)
        canvas = Canvas(visible, part.channels, part.patches, part.grid, types, part.places)
        predicted = _decoder(checkpoint, record, strategy).to(latent.dtype)(latent, canvas)
    outputs = {"mask": torch.ones_like(noise).scatter(1, visible, 0.0)}
    for name in record["cases"][case]["outputs"]:
        whole = {"latent": latent, "reconstruction": predicted}.get(name.split("_")[0])
        if whole is not None:
            outputs[name] = whole[:, :: told_step(name, "every_{}")]
    return outputs


def _decoder(checkpoint: Checkpoint, record: Mapping[str, Any], strategy: ChannelAgnostic) -> nn.Module:
    """Build our decoder per channel with the weights of the file."""
    everything = checkpoint.under("", "state_dict")
    theirs = checkpoint.under("decoder.", "state_dict")
    width, n_types = theirs["mask_token"].shape[-1], len([n for n in theirs if n.startswith("modality_tokens.")])
    recipe = DecoderRecipe(
        kind="per_channel",
        identity="types",
        channels=tuple(channel_vocabulary())[:n_types],
        width=width,
        depth=depth_of(theirs, "decoders.0."),
        n_heads=record["constructor"]["decoder"]["num_heads"],
    )
    decoder = PerChannelDecoder(strategy.embed_dim, len(everything["decoder_pred.bias"]), n_types, recipe)
    for module in decoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = _DECODER_EPS
    renamed = {"cross_attention.proj.": "cross.out.", "cross_attention.": "cross.", "out_norm.": "mlp_norm."}
    ours: dict[str, Tensor] = {}
    for name, value in with_biases(theirs).items():
        if name.split(".")[0] in ("mask_token", "placeholder", "pos_embeddings", "modality_tokens"):
            continue
        old = next((start for start in renamed if name.startswith(start)), "")
        ours[renamed.get(old, "") + name.removeprefix(old)] = value
    ours["entry.mask_token"] = theirs["mask_token"].flatten()
    ours["entry.types.weight"] = torch.cat([theirs[f"modality_tokens.{number}"][0] for number in range(n_types)])
    for kind in ("weight", "bias"):
        ours[f"entry.project.{kind}"] = everything[f"encoder_decoder_proj.{kind}"]
        ours[f"predict.{kind}"] = everything[f"decoder_pred.{kind}"]
    load_exchanged(decoder, ours, width, str(checkpoint.path))
    return decoder.eval()


def _grids(table: Tensor, backbone: ParallelTransformer, source: str) -> int:
    """Return for how many channels the file repeats the positions of one grid, and check that it does."""
    n_patches = backbone.trained_grid[0] * backbone.trained_grid[1]
    n_grids, rest = divmod(table.shape[1] - 1, n_patches)
    if rest or n_grids < 1:
        raise WeightsError(
            f"{source} has {table.shape[1] - 1} positions, which are not those of grids of {n_patches} patches; "
            f"image_size_px={backbone.trained_grid[0] * backbone.patch_size_px[0]} is not that of the encoder."
        )
    grids = table[0, 1:].reshape(n_grids, n_patches, -1)
    if not table.is_meta and not torch.equal(grids, grids[:1].expand_as(grids)):
        raise WeightsError(f"{source} gives channels positions of their own, which CA-MAE's encoder does not.")
    return n_grids


def _to_ours(tensors: Mapping[str, Tensor], n_patches: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        ours = name.replace(".ls.gamma", ".gamma")
        for theirs, own in _NAMES.items():
            ours = own + ours.removeprefix(theirs) if ours.startswith(theirs) else ours
        state[ours] = value[:, : 1 + n_patches] if name == "pos_embed" else value
    return state


def _to_theirs(state: Mapping[str, Tensor], n_grids: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        theirs = f"{name.removesuffix('gamma')}ls.gamma" if name.endswith(".gamma") else name
        for old, own in _NAMES.items():
            theirs = old + theirs.removeprefix(own) if theirs.startswith(own) else theirs
        tensors[theirs] = value
    table = tensors["pos_embed"]
    tensors["pos_embed"] = torch.cat([table[:, :1], table[:, 1:].repeat(1, n_grids, 1)], dim=1)
    return tensors
