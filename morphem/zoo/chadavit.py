"""ChAda-ViT: all channels of an image in one sequence, told apart by their slot.

Source: nicoboou/chadavit at 9da56be (Apache-2.0), Bourriez et al. 2024, https://arxiv.org/abs/2311.15264.
Differs from it: slots are filled in the order of the channels' names, where the authors take the order of the planes
(`fill='by_position'`); empty slots are left out instead of being padded and masked, which gives the same numbers.
The authors' class, notebook and hub configuration say twelve heads; the factory that their training and evaluation call
builds two, and another epsilon, from the same tensors (`built_by='factory'`). Nobody says which the release had.
"""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from morphem.backbones.post_norm import PostNormTransformer
from morphem.channels.slot_attention import SlotAttention
from morphem.encoder import Encoder
from morphem.errors import ConfigError, unknown_name
from morphem.pixel_steps import ZScore
from morphem.zoo.base import ByHand, Checkpoint, HubFile, Pretrained, Record
from morphem.zoo.replaying import any_types, embed, entering, is_of, leaving, told_step
from morphem.zoo.strictness import depth_of, load_renamed, needed, without_memory

_NAMES = {"token_learner.proj": "patch_embed", "cls_token": "first_token", "pos_embed": "position_table"}
_BLOCK_NAMES = {"self_attn.in_proj_": "qkv.", "self_attn.out_proj": "proj", "linear1": "fc1", "linear2": "fc2"}
_OURS, _SLOTS, _POSITIONS, _TOKENS = "backbone.", "slot_embedding", "pos_embed", "channel_token"
_NEEDED = ("cls_token", _TOKENS, _POSITIONS, "token_learner.proj.weight", "blocks.0.linear1.weight")
_PREFIXES = {"student": "backbone.", "teacher": "momentum_backbone."}
_LEFT_OUT = ("backbone.", "momentum_backbone.", "head.", "momentum_head.", "classifier.", "dino_loss_func.")
_HEADS = 12
_FACTORY = {"n_heads": 2, "final_norm_eps": 1e-6}
_PREPARATION = "not documented by the authors; z-score per plane (eps 1e-5 on the variance), resized to 224 (bilinear)"


def _record(name: str, what: str, location: HubFile | ByHand, exported: Literal["student", "unknown"]) -> Record:
    return Record(
        name=name,
        summary=f"ChAda-ViT 'moyen', DINO on IDRCell100k, {what}: 192 features per image",
        location=location,
        license="Apache-2.0",
        restricted=False,
        citation="Bourriez et al. 2024, ChAda-ViT, CVPR, arXiv:2311.15264",
        source="https://github.com/nicoboou/chadavit at 9da56be",
        exported=exported,
        input_domain="unknown",
        preparation=_PREPARATION,
        native_size_px=224,
        pooling="class token after the final LayerNorm",
        channel_rule="up to 10 of any type; slots in alphabetical order of their types",
        embed_dim=192,
        facts={"n_heads": 12},
    )


class ChAdaViT(Pretrained):
    """The hub form and the Lightning form.

    Args:
        n_heads: Attention heads, which no shape shows. Where not given, as the `config.json` beside the file says, or
            12 with a warning.
        built_by: `class` takes the epsilon of the authors' class; `factory` builds what their factory function does:
            two heads, and an epsilon of 1e-6 in the last normalisation.
        network: Of a Lightning checkpoint: the `student` (`backbone.`), which the authors' notebook takes, or the
            `teacher` (`momentum_backbone.`).
        fill: How slots are filled; see `SlotAttention`.
    """

    records: ClassVar[tuple[Record, ...]] = (
        _record(
            "chadavit",
            "hub form",
            HubFile(
                "nicoboou/chadavit16-moyen",
                "model.safetensors",
                "91a41123650ccff12f590364fec95d76af36cc93",
                ("config.json",),
            ),
            "unknown",
        ),
        _record(
            "chadavit-lightning",
            "Lightning checkpoint",
            ByHand(
                "https://drive.google.com/file/d/1SUfUwerHJlf0vo9mdgM0mRn9TNZkaqXl",
                "weights.ckpt",
                "Download it from the address in the authors' notebook; its md5 is e8a24ac58b8e34bdce10e0024d507f2e.",
            ),
            "student",
        ),
    )

    def __init__(
        self,
        n_heads: int | None = None,
        built_by: Literal["class", "factory"] = "class",
        network: Literal["student", "teacher"] = "student",
        fill: Literal["by_name", "by_position"] = "by_name",
    ) -> None:
        if built_by not in ("class", "factory"):
            raise ConfigError(unknown_name("way to build ChAda-ViT", built_by, ("class", "factory")))
        if network not in _PREFIXES:
            raise ConfigError(unknown_name("network of ChAda-ViT", network, _PREFIXES))
        if built_by == "factory" and n_heads not in (None, _FACTORY["n_heads"]):
            raise ConfigError(
                f"chadavit: built_by='factory' has 2 heads, not n_heads={n_heads}; leave one of them out."
            )
        self.n_heads = n_heads
        self.built_by = built_by
        self.network = network
        self.fill = fill

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file holds such a network, bare or in a Lightning checkpoint."""
        tensors = _tensors(checkpoint, "student")
        return all(name in tensors for name in _NEEDED)

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder; of a Lightning checkpoint the other network, heads, classifier and loss are left out."""
        tensors, source = _tensors(checkpoint, self.network), str(checkpoint.path)
        needed(tensors, _NEEDED, source, "ChAda-ViT encoder")
        with without_memory():
            backbone = self._backbone(tensors, checkpoint)
            strategy = SlotAttention(backbone, n_slots=tensors[_TOKENS].shape[1], fill=self.fill)
        load_renamed(strategy, tensors, _to_ours, _to_theirs, source)
        encoder = Encoder(strategy, ZScore(1e-5), 224, "bilinear").eval()
        nested = isinstance(checkpoint.content.get("state_dict"), Mapping)
        encoder.card = {"exported": self.network} if nested else {}
        return encoder

    def _backbone(self, tensors: Mapping[str, Tensor], checkpoint: Checkpoint) -> PostNormTransformer:
        told = self.n_heads or checkpoint.sidecars.get("config.json", {}).get("num_heads")
        if told is None and self.built_by == "class":
            warnings.warn(
                f"{checkpoint.path} does not show its attention heads; {_HEADS} are assumed, as the authors' class and "
                "hub configuration say (their factory builds 2). Say n_heads=... or built_by='factory'.",
                stacklevel=2,
            )
        facts: dict[str, Any] = {"n_heads": told or _HEADS}
        facts |= _FACTORY if self.built_by == "factory" else {}
        projection = tensors["token_learner.proj.weight"]
        patch = projection.shape[-1]
        return PostNormTransformer(
            patch_size_px=patch,
            image_size_px=round((tensors[_POSITIONS].shape[2] - 1) ** 0.5) * patch,
            embed_dim=projection.shape[0],
            depth=depth_of(tensors),
            hidden_dim=len(tensors["blocks.0.linear1.weight"]),
            **facts,
        )

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors of the network, with the prefix that they had in a Lightning checkpoint."""
        prefix = _PREFIXES.get(encoder.card.get("exported", ""), "")
        return {f"{prefix}{name}": value for name, value in _to_theirs(encoder.channels.state_dict()).items()}

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take the heads of the record, and the authors' order of slots."""
        if not is_of(record, "ChAda-ViT", "chadavit"):
            return None
        return cls(record["constructor"]["num_heads"], fill="by_position")

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute a case; images are the planes that its channel counts put together."""
        if case.startswith("factory"):
            factory = type(self)(built_by="factory", network=self.network, fill=self.fill).convert(checkpoint)
            return {"features": _embed(factory.to(encoder.dtype), _images(inputs))}
        images = _images(inputs)
        if case == "each_alone":
            return {"features": torch.cat([_embed(encoder, [image]) for image in images])}
        outputs = {"features": _embed(encoder, images)}
        for name in record["cases"][case]["outputs"]:
            if name == "features_of_momentum_backbone":
                teacher = type(self)(self.n_heads, self.built_by, "teacher", self.fill).convert(checkpoint)
                outputs[name] = _embed(teacher.to(encoder.dtype), images)
            elif name.startswith("tokens_last"):
                last = torch.cat([_last_patches(encoder, image) for image in images])
                outputs[name] = last[:: told_step(name, "every_{}")]
            elif name == "tokens_mask":
                step = told_step(record["cases"][case]["words"], "every {}(?:st|nd|rd|th) entry")
                outputs[name] = _left_out(encoder, images)[:, ::step]
            elif name == "tokens_embedded_first_image":
                step = told_step(record["cases"][case]["words"], "every {}(?:st|nd|rd|th) token entering")
                outputs[name] = _entering_with_empty_slots(encoder, images[0])[::step]
        return outputs


def _tensors(checkpoint: Checkpoint, network: Literal["student", "teacher"]) -> dict[str, Tensor]:
    """Return the tensors of a network, and with them what a file holds that nobody expects."""
    everything, prefix = checkpoint.under("", "state_dict"), _PREFIXES[network]
    if not any(name.startswith(prefix) for name in everything):
        return everything
    own = {name.removeprefix(prefix): value for name, value in everything.items() if name.startswith(prefix)}
    return own | {name: value for name, value in everything.items() if not name.startswith(_LEFT_OUT)}


def _to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name == _TOKENS:
            state[_SLOTS] = value[0, :, 0]
            continue
        ours = name
        for theirs, own in (*_NAMES.items(), *_BLOCK_NAMES.items()):
            ours = ours.replace(theirs, own)
        state[f"{_OURS}{ours}"] = value[0] if name == _POSITIONS else value
    return state


def _to_theirs(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == _SLOTS:
            tensors[_TOKENS] = value[None, :, None]
            continue
        theirs = name.removeprefix(_OURS)
        if theirs.startswith("blocks."):
            start, block, part = theirs.split(".", 2)
            for old, own in _BLOCK_NAMES.items():
                part = old + part.removeprefix(own) if part.startswith(own) else part
            theirs = f"{start}.{block}.{part}"
        for old, own in _NAMES.items():
            theirs = old + theirs.removeprefix(own) if theirs.startswith(own) else theirs
        tensors[theirs] = value[None] if theirs == _POSITIONS else value
    return tensors


def _images(inputs: Mapping[str, Any]) -> list[Tensor]:
    """Put planes, (P, 1, H, W), together to images by their channel counts."""
    return [part[:, 0] for part in inputs["planes"].split(list(inputs["channel_counts"]))]


def _embed(encoder: Encoder, images: list[Tensor]) -> Tensor:
    """Embed images at their size; slots go by position, so any different names will do."""
    return embed(encoder, images, any_types(images), resize=False)


def _last_patches(encoder: Encoder, image: Tensor) -> Tensor:
    """Return the patch tokens of an image after the last normalisation, (C * N, D)."""
    tokens: Tensor
    _, tokens = leaving(_backbone(encoder).norm, lambda: _embed(encoder, [image]))
    return tokens[0, 1:]


def _entering_with_empty_slots(encoder: Encoder, image: Tensor) -> Tensor:
    """Return the tokens that enter the first block, and after them what the authors put into empty slots, (T, D)."""
    backbone, strategy = _backbone(encoder), encoder.channels
    assert isinstance(strategy, SlotAttention)
    _, tokens = entering(backbone.blocks[0], lambda: _embed(encoder, [image]))
    grid = tuple(side // patch for side, patch in zip(image.shape[1:], backbone.patch_size_px, strict=True))
    positions = backbone.patch_positions((grid[0], grid[1]))  # (1, N, D)
    empty = positions + strategy.slot_embedding[len(image) :, None]
    return torch.cat([tokens[0], empty.flatten(0, 1)])


def _left_out(encoder: Encoder, images: list[Tensor]) -> Tensor:
    """Return which of the authors' tokens, padded to all slots, our sequences leave out, (N, 1 + slots * N)."""
    strategy = encoder.channels
    assert isinstance(strategy, SlotAttention)
    rows = []
    for image in images:
        _, tokens = entering(_backbone(encoder).blocks[0], lambda image=image: _embed(encoder, [image]))  # type: ignore[misc]
        n_patches = (tokens.shape[1] - 1) // len(image)
        rows.append(torch.arange(1 + len(strategy.slot_embedding) * n_patches) >= tokens.shape[1])
    return torch.stack(rows)


def _backbone(encoder: Encoder) -> PostNormTransformer:
    backbone = encoder.channels.backbone
    assert isinstance(backbone, PostNormTransformer)
    return backbone
