"""Campfire of GSK: a channel-agnostic masked autoencoder, with plain or rotary blocks.

Source: GSK-AI/campfire at b034f8d (Apache-2.0), Hurry et al. 2025. The paper speaks of rotary positions, the README
builds the model without; axial ones have no parameters, so a file cannot show which it was trained with (`rotary`). The
rotary code casts its complex factors to the type of the activations and so loses the sine; weights that were trained
with it need the same (`rotation='cosine'`, the default).
Differs from it: nothing in the features. How pixels were scaled is not documented; planes are resized to the trained
size and standardised.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from morphem.backbones.rotary import ROTARY, ROTATIONS, Rotary, Rotation, axial_frequencies, make_rotary
from morphem.backbones.vit import VisionTransformer
from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.channels.sequences import Sequences
from morphem.decoders import Canvas, DecoderRecipe, SharedDecoder
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError, unknown_name
from morphem.pixel_steps import Chain, ZScore
from morphem.types import ChannelBatch
from morphem.zoo.base import ByHand, Checkpoint, Pretrained, Record
from morphem.zoo.channel_tokens import vision_transformer
from morphem.zoo.decoding import load_exchanged
from morphem.zoo.replaying import any_types, embed, entering, is_of, leaving, told_step
from morphem.zoo.single_vit import PROJECTION
from morphem.zoo.strictness import depth_of, load_renamed, needed, without_memory

_PREFIX = "encoder."
_DECODER = "decoder."
_OURS = "network."
_NEEDED = ("cls_token", "pos_embed", PROJECTION, "blocks.0.attn.qkv.weight")
_BASE = 10.0  # of the rotary frequencies
_LAST_STEP = 13  # golden records hold as many of the last tokens apart, and do not say so


def _record(name: str, what: str, facts: dict[str, Any]) -> Record:
    return Record(
        name=name,
        summary=f"Campfire, channel-agnostic masked autoencoder, ViT-L/14 on JUMP-CP source 3, {what}: 1024 features",
        location=ByHand(
            "https://github.com/GSK-AI/campfire/releases/tag/v1.0.0",
            "campfire.ckpt",
            "Download the checkpoint that is attached to release v1.0.0, and give it this name.",
        ),
        license="Apache-2.0",
        restricted=False,
        citation="Hurry et al. 2025, Out-of-distribution evaluations of channel agnostic masked autoencoders",
        source="https://github.com/GSK-AI/campfire at b034f8d",
        exported="only",
        input_domain="unknown",
        preparation="not documented by the authors; resized to 112 (bilinear), z-score per plane",
        native_size_px=112,
        pooling="LayerNorm on all tokens, mean of the patch tokens of all channels, the same LayerNorm again",
        channel_rule="any channels; nothing tells them apart",
        embed_dim=1024,
        facts=facts,
    )


class Campfire(Pretrained):
    """The release as the README builds it, and its rotary forms.

    Args:
        n_heads: Attention heads, which no shape shows. Where not given, those of the published network of that width.
        rotary: `none`, `axial` or `mixed`. Where not given, as the file shows: `mixed` with frequencies in it, else
            `none`, with a warning: axial positions have no weights, so they have to be asked for.
        rotation: `cosine` as the authors' code computes; `full` turns queries and keys as the formula says.
    """

    records: ClassVar[tuple[Record, ...]] = (
        _record("campfire", "plain blocks as in the README", {"n_heads": 16, "rotary": "none"}),
        _record("campfire-axial", "read with axial rotary positions", {"n_heads": 16, "rotary": "axial"}),
    )

    def __init__(self, n_heads: int | None = None, rotary: Rotary | None = None, rotation: Rotation = "cosine") -> None:
        if rotary is not None and rotary not in ROTARY:
            raise ConfigError(unknown_name("rotary form of Campfire", rotary, ROTARY))
        if rotation not in ROTATIONS:
            raise ConfigError(unknown_name("rotation of Campfire", rotation, ROTATIONS))
        if rotary == "none" and rotation != "cosine":
            raise ConfigError("campfire: rotation='full' has no effect with rotary='none'; leave it out.")
        self.n_heads = n_heads
        self.rotary = rotary
        self.rotation = rotation

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds an encoder of this kind: DINO's names, one 3-D patch projection, no channel table."""
        tensors = checkpoint.under(_PREFIX, "state_dict")
        fits = all(name in tensors for name in _NEEDED) and tensors[PROJECTION].ndim == 5
        return fits and not any(name.startswith("patch_embed.channel") for name in tensors)

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder; the decoder (`decoder.*`) is left out."""
        everything, source = checkpoint.under("", "state_dict"), str(checkpoint.path)
        tensors = {
            name.removeprefix(_PREFIX): value for name, value in everything.items() if not name.startswith(_DECODER)
        }
        needed(tensors, _NEEDED, source, "Campfire encoder")
        rotary = self._rotary_of(tensors, source)
        turning: dict[str, Any] = {"rotary": rotary, "rotary_base": _BASE, "rotation": self.rotation}
        with without_memory():
            backbone = vision_transformer(
                tensors, self.n_heads, source, 16, positions="sincos", **(turning if rotary != "none" else {})
            )
        load_renamed(backbone, tensors, _to_ours, _to_theirs, source)
        side = backbone.network.patch_embed.grid_size[0] * backbone.patch_size_px[0]
        strategy = ChannelAgnostic(backbone, "mean_norm")
        return Encoder(strategy, Chain(), side, "bilinear", after_resize=ZScore(0.0)).eval()

    def _rotary_of(self, tensors: Mapping[str, Tensor], source: str) -> Rotary:
        mixed = "blocks.0.freqs" in tensors
        if self.rotary is None and not mixed:
            warnings.warn(
                f"{source} cannot show whether it was trained with axial rotary positions, which have no weights; none "
                "are assumed, as in the authors' README. Say rotary='axial' or 'none'.",
                stacklevel=2,
            )
        rotary = self.rotary or ("mixed" if mixed else "none")
        if mixed is not (rotary == "mixed"):
            has, right = ("has", "'mixed'") if mixed else ("has no", "'none' or 'axial'")
            raise WeightsError(
                f"{source} {has} rotary frequencies (blocks.*.freqs), which rotary='{rotary}' contradicts; say {right}."
            )
        return rotary

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors of the authors' encoder, with its prefix."""
        state = _to_theirs(_backbone(encoder).state_dict())
        return {f"{_PREFIX}{name}": value for name, value in state.items()}

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take heads and rotary form of the record."""
        if not is_of(record, "Campfire", "campfire"):
            return None
        constructor = record["constructor"]
        rotary: Rotary = next((form for form in ROTARY if f"mode {form}" in constructor["block"]), "none")
        return cls(constructor["encoder_num_heads"], rotary)

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute a case; numbers of channels matter to reconstructions alone."""
        images = list(inputs["images"])
        order = re.search(r"order ((?:\d+,)+\d+)", record["cases"][case]["words"])
        if order:
            images = [image[[int(number) for number in order[1].split(",")]] for image in images]
        backbone = _backbone(encoder)
        batch: ChannelBatch
        features, batch = entering(encoder.channels, lambda: _embed(encoder, images))
        outputs = {"features": features}
        for name in record["cases"][case]["outputs"]:
            if name.startswith("tokens_patch_projection"):
                with torch.no_grad():
                    content = backbone.patches(batch.planes)  # (P, N, D)
                outputs[name] = content[: len(images[0])].flatten(0, 1)[None, :: told_step(name, "every_{}")]
            elif name == "tokens_last":
                _, last = leaving(backbone.network.blocks[-1], lambda: _embed(encoder, images[:1]))
                outputs[name] = backbone.network.norm(last).detach()[:, ::_LAST_STEP]
            elif name.startswith("predicted_image_of_item_0"):
                heads = record["constructor"]["decoder_num_heads"]
                predicted = self._predicted(encoder, checkpoint, heads, batch, inputs["channel_idx"])
                step = told_step(name, "every_{}")
                outputs[name] = predicted[:1, :, 1::step, 2::step]
        return outputs

    @torch.no_grad()
    def _predicted(
        self, encoder: Encoder, checkpoint: Checkpoint, n_heads: int, batch: ChannelBatch, numbers: Tensor
    ) -> Tensor:
        """Return the images that the decoder of the file makes of all tokens, (N, C, H, W)."""
        strategy, backbone = encoder.channels, _backbone(encoder)
        (part,) = strategy.sequences(batch)
        encoded = backbone.encode_at(part.tokens, part.coordinates)
        content = backbone.patches(batch.planes).mean(1)  # (P, D)
        same = (numbers.flatten()[:, None] == numbers.flatten()).to(content)  # (P, P)
        context = (same @ content / same.sum(1, keepdim=True)).reshape(*numbers.shape, -1)
        count, length = part.patches.shape
        visible = torch.arange(length).expand(count, length)
        canvas = Canvas(visible, part.channels, part.patches, part.grid, numbers, part.places, context)
        decoder = self._decoder(checkpoint, n_heads, backbone).to(encoded.dtype)
        prefix, tokens = decoder.entry(encoded, canvas)
        x = self._decoded(decoder, torch.cat([prefix, tokens], dim=1), part)
        pixels = decoder.predict(decoder.norm(x[:, prefix.shape[1] :]))
        (rows, columns), (height, width) = part.grid, backbone.patch_size_px
        cut = pixels.reshape(count, -1, rows, columns, height, width).transpose(3, 4)
        images: Tensor = cut.reshape(count, -1, rows * height, columns * width)
        return images

    def _decoder(self, checkpoint: Checkpoint, n_heads: int, backbone: VisionTransformer) -> SharedDecoder:
        theirs = checkpoint.under(_DECODER, "state_dict")
        width = theirs["mask_token"].shape[-1]
        recipe = DecoderRecipe(identity="context", width=width, depth=depth_of(theirs), n_heads=n_heads)
        decoder = SharedDecoder(backbone.embed_dim, len(theirs["pred.bias"]), 1, recipe)
        decoder.entry.context = nn.Linear(backbone.embed_dim, width)  # Campfire's has a bias
        if backbone.needs_places:
            make_rotary(decoder.blocks, "mixed" if "blocks.0.freqs" in theirs else "axial", self.rotation, _BASE)
        renamed = {"decoder_embed.": "entry.project.", "context_layer.": "entry.context.", "pred.": "predict."}
        ours = {"entry.mask_token": theirs["mask_token"].flatten()}
        for name, value in theirs.items():
            if name not in ("mask_token", "pos_embed"):
                old = next((start for start in renamed if name.startswith(start)), "")
                ours[renamed.get(old, "") + name.removeprefix(old)] = value
        load_exchanged(decoder, ours, width, str(checkpoint.path))
        return decoder.eval()

    @staticmethod
    def _decoded(decoder: SharedDecoder, x: Tensor, part: Sequences) -> Tensor:
        """Run the blocks of the decoder, told the places of the patches where they are rotary."""
        block: Any = decoder.blocks[0]
        if not hasattr(block, "rotation"):
            return decoder.blocks(x)  # type: ignore[no-any-return]
        none = x.new_zeros(len(x), x.shape[1] - part.patches.shape[1], 2)
        places = torch.cat([none, part.coordinates.to(x.dtype)], dim=1)
        axial = None if hasattr(block, "freqs") else axial_frequencies(block.attn.head_dim, _BASE)
        for each in decoder.blocks:
            x = each(x, places, axial)
        return x


def _embed(encoder: Encoder, images: list[Tensor]) -> Tensor:
    """Embed images at their size; channels are not told apart, so any different names will do."""
    return embed(encoder, images, any_types(images), resize=False)


def _backbone(encoder: Encoder) -> VisionTransformer:
    backbone = encoder.channels.backbone
    assert isinstance(backbone, VisionTransformer)
    return backbone


def _to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {f"{_OURS}{name}": value for name, value in tensors.items()}
    state[f"{_OURS}{PROJECTION}"] = tensors[PROJECTION].squeeze(2)
    return state


def _to_theirs(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {name.removeprefix(_OURS): value for name, value in state.items()}
    tensors[PROJECTION] = tensors[PROJECTION].unsqueeze(2)
    return tensors
