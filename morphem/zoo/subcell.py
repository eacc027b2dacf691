"""SubCell: vision transformers on fixed channels of the Human Protein Atlas, pooled by gated attention.

Source: Gupta et al. 2024, https://doi.org/10.1101/2024.12.06.627299; czi-ai/sub-cell-embed at a81b11c (training),
CellProfiling/SubCellPortable at 676f0e1 (inference), both MIT; CHAMMI-75's benchmark at b84a4ec for the pairing of
channels. The transformer is that of Hugging Face (transformers 4.45): LayerNorm epsilon 1e-12, exact GELU, fixed
positions in the file, resampled bicubically to the exact size without antialiasing.
Pixels at the right and the bottom that no patch of 16 holds have a say in the minimum and maximum alone, as there.
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from morphem.backbones.gated_pooling import GatedAttentionPooling
from morphem.backbones.vit import VisionTransformer
from morphem.channels.pooled_channels import PairedChannels, PooledChannels
from morphem.data.schema import channel_vocabulary
from morphem.encoder import Encoder
from morphem.errors import ChannelError, ConfigError, WeightsError
from morphem.pixel_steps import Chain, JointMinMax
from morphem.types import ChannelBatch
from morphem.zoo.base import Checkpoint, Pretrained, Record, WebFile
from morphem.zoo.key_names import KeyNames
from morphem.zoo.seen import network_batch
from morphem.zoo.shapes import mlp_ratio
from morphem.zoo.strictness import depth_of, load_renamed, needed, without_memory
from morphem.zoo.subcell_locations import SubCellClassifier

CHANNELS = {"r": "microtubules", "y": "endoplasmic reticulum", "b": "nucleus", "g": "protein"}
"""The authors' letters for channels."""

_SETS = {"all_channels": "rybg", "MT-DNA-Protein": "rbg", "ER-DNA-Protein": "ybg", "DNA-Protein": "bg"}
_TRAININGS = {
    "MAE-CellS-ProtS-Pool": "masked reconstruction, contrast of cells and of proteins",
    "ViT-ProtS-Pool": "contrast of proteins",
}
_BUCKET = "https://czi-subcell-public.s3.amazonaws.com/models"
_RELEASED_WIDTH = 768
_PARTS = ("query", "key", "value")
_PROJECTION = "encoder.embeddings.patch_embeddings.projection.weight"
_ATTENTION = "pool_model.attention.weight"
_POSITIONS = "encoder.embeddings.position_embeddings"
_NEEDED = (_PROJECTION, _POSITIONS, _ATTENTION)
_LAYER = "encoder.encoder.layer.{i}."
_NAMES = KeyNames(
    [
        ("encoder.embeddings.cls_token", "backbone.network.cls_token"),
        ("encoder.embeddings.position_embeddings", "backbone.network.pos_embed"),
        ("encoder.embeddings.patch_embeddings.projection.{rest}", "backbone.network.patch_embed.proj.{rest}"),
        ("encoder.layernorm.{rest}", "backbone.network.norm.{rest}"),
        *(
            (f"{_LAYER}attention.attention.{part}.{{rest}}", f"backbone.network.blocks.{{i}}.attn.{part}.{{rest}}")
            for part in _PARTS
        ),
        (f"{_LAYER}attention.output.dense.{{rest}}", "backbone.network.blocks.{i}.attn.proj.{rest}"),
        (f"{_LAYER}intermediate.dense.{{rest}}", "backbone.network.blocks.{i}.mlp.fc1.{rest}"),
        (f"{_LAYER}output.dense.{{rest}}", "backbone.network.blocks.{i}.mlp.fc2.{rest}"),
        (f"{_LAYER}layernorm_before.{{rest}}", "backbone.network.blocks.{i}.norm1.{rest}"),
        (f"{_LAYER}layernorm_after.{{rest}}", "backbone.network.blocks.{i}.norm2.{rest}"),
        ("pool_model.attention_v.{rest}", "pooling.tanh_gate.{rest}"),
        ("pool_model.attention_u.{rest}", "pooling.gelu_gate.{rest}"),
        ("pool_model.attention.{rest}", "pooling.attention.{rest}"),
    ]
)


def _records() -> tuple[Record, ...]:
    return tuple(
        Record(
            name=f"subcell-{letters}-{'mae' if training.startswith('MAE') else 'vit'}",
            summary=f"SubCell {training}, ViT-B/16 on {', '.join(CHANNELS[x] for x in letters)}: {words}",
            location=WebFile(f"{_BUCKET}/{prefix}_{training}.pth"),
            license="MIT",
            restricted=False,
            citation="Gupta et al. 2024, https://doi.org/10.1101/2024.12.06.627299",
            source="https://github.com/czi-ai/sub-cell-embed at a81b11c",
            exported="only",
            input_domain="any",
            preparation="joint min-max over all channels of the image, (x - min) / (max - min + 1e-6); no resize",
            native_size_px=448,
            pooling="gated attention of two heads over all tokens",
            channel_rule=f"exactly {', '.join(CHANNELS[x] for x in letters)}",
            embed_dim=1536,
            facts={"channels": tuple(CHANNELS[x] for x in letters)},
            vocabulary=tuple(CHANNELS[x] for x in letters),
        )
        for prefix, letters in _SETS.items()
        for training, words in _TRAININGS.items()
    )


class SubCell(Pretrained):
    """The eight released encoders: four sets of channels, two trainings each.

    Args:
        channels: What the input channels show, by name or alias, in the order of the weights. Where not given, as the
            release of as many channels has them; of three there are two releases, so they have to be named. Another
            stain may take the place of the protein, as in CHAMMI-75's benchmark on Cell Painting.
        pairs: With a file of two channels, images of more: the nucleus is paired with each of these channels, and the
            embeddings of all pairs stand side by side, as CHAMMI-75's benchmark does.
        n_heads: Attention heads of the transformer; where not given, the 12 of the releases, whose width is 768, and
            files of other widths are refused.
        layer_norm_eps: Of the transformer.

    Raises:
        ConfigError: If `pairs` is given with other than two channels, or `n_heads` is below 1.
    """

    fixture: ClassVar[str] = "subcell"
    records: ClassVar[tuple[Record, ...]] = _records()

    def __init__(
        self,
        channels: Sequence[str] | None = None,
        pairs: Sequence[str] = (),
        n_heads: int | None = None,
        layer_norm_eps: float = 1e-12,
    ) -> None:
        if pairs and channels is not None and len(channels) != 2:
            raise ConfigError(
                f"subcell: pairs={list(pairs)} needs the file of two channels, but channels names {len(channels)}; "
                "take a bg file, or leave pairs out."
            )
        if n_heads is not None and n_heads < 1:
            raise ConfigError(f"subcell: n_heads={n_heads} must be at least 1.")
        self.channels = None if channels is None else tuple(channels)
        self.pairs = tuple(pairs)
        self.n_heads = n_heads
        self.layer_norm_eps = layer_norm_eps

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file has SubCell's transformer and pooling."""
        return _PROJECTION in checkpoint.content and _ATTENTION in checkpoint.content

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder from a flat file, of the training repository or of the portable one.

        Args:
            checkpoint: The authors' file.

        Raises:
            WeightsError: If keys are missing or left over, or three channels are not named.
        """
        source = str(checkpoint.path)
        tensors = checkpoint.under("")
        if len(tensors) != len(checkpoint.content):
            others = [str(key) for key in checkpoint.content if key not in tensors]
            raise WeightsError(
                f"{source} is no SubCell encoder, a flat file of tensors: it holds {', '.join(others[:5])}."
            )
        index = "1" if any(name.startswith("pool_model.attention_v.1.") for name in tensors) else "0"
        needed(tensors, _NEEDED, source, "SubCell encoder")
        with without_memory():
            strategy = self._strategy(tensors, source)

        def to_ours(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            plain = {_without_index(name, index): tensor for name, tensor in theirs.items()}
            return _joined(_NAMES.inwards(plain, source))

        load_renamed(strategy, tensors, to_ours, lambda state: _outwards(state, index), source)
        encoder = Encoder(strategy, Chain([JointMinMax(eps=1e-6)], input_domain="any"), input_size_px=None).eval()
        encoder.card = {"exported": "only", "pool_layer_index": index}
        return encoder

    def _strategy(self, tensors: Mapping[str, Tensor], source: str) -> PooledChannels:
        """Build the network that the authors' tensors show, untrained."""
        width, n_channels, patch, _ = tensors[_PROJECTION].shape
        n_pools, hidden = tensors[_ATTENTION].shape
        mlp = tensors.get(_LAYER.format(i=0) + "intermediate.dense.weight")
        backbone = VisionTransformer(
            "vit_base_patch16_224",
            patch_size_px=patch,
            image_size_px=round((tensors[_POSITIONS].shape[1] - 1) ** 0.5) * patch,
            embed_dim=width,
            depth=max(1, depth_of(tensors, "encoder.encoder.layer.")),
            n_heads=self._heads(width, source),
            qkv_bias=any(name.endswith("attention.attention.query.bias") for name in tensors),
            layer_norm_eps=self.layer_norm_eps,
            mlp_ratio=None if mlp is None else mlp_ratio(len(mlp), width),
            position_offset=0.0,
        )
        pooling = GatedAttentionPooling(width, hidden, n_pools)
        if self.pairs:
            anchor, *rest = self._named(n_channels, source)
            if len(rest) != 1:
                raise WeightsError(f"{source} takes {n_channels} channels; pairs needs the file of two (bg).")
            return PairedChannels(backbone, anchor, self.pairs, pooling)
        return PooledChannels(backbone, self._named(n_channels, source), pooling)

    def _heads(self, width: int, source: str) -> int:
        heads = 12 if self.n_heads is None and width == _RELEASED_WIDTH else self.n_heads
        if heads is None or width % heads:
            given = "no shape shows its attention heads" if heads is None else f"n_heads={heads} does not divide it"
            raise WeightsError(
                f"{source} has a width of {width}, not the {_RELEASED_WIDTH} of the releases, and {given}; "
                "give the right n_heads."
            )
        return heads

    def _named(self, n_channels: int, source: str) -> tuple[str, ...]:
        released = [tuple(CHANNELS[x] for x in letters) for letters in _SETS.values() if len(letters) == n_channels]
        if self.channels is not None:
            if len(self.channels) != n_channels:
                raise ChannelError(
                    f"{source} takes {n_channels} channels, but {len(self.channels)} are named "
                    f"({', '.join(self.channels)}); name them in the order of the weights."
                )
            return self.channels
        if len(released) == 1:
            return released[0]
        choices = " or ".join(f"channels={list(names)}" for names in released) or "channels=[...]"
        raise WeightsError(f"{source} does not say what its {n_channels} channels show; give {choices}.")

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the tensors under the authors' names, with queries, keys and values apart."""
        return _outwards(encoder.channels.state_dict(), encoder.card.get("pool_layer_index", "1"))

    @staticmethod
    def read_classifier(*files: str | Path) -> SubCellClassifier:
        """Read heads that turn the embedding into probabilities of 31 subcellular locations.

        Args:
            files: One head each; the authors average the probabilities of several.

        Raises:
            WeightsError: If there is none, or a file is not such a head.
        """
        return SubCellClassifier.from_files(*map(Path, files))

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take heads, epsilon and channels of a `subcell_*` record."""
        if not str(record.get("fixture", "")).startswith(cls.fixture):
            return None
        transformer = record["constructor"]["vit_model"]
        letters = [re.search(r"\((\w)\)$", name) for name in record["channel_names"]]
        channels = tuple(CHANNELS[match[1]] for match in letters if match)
        return cls(
            channels=channels, n_heads=transformer["num_attention_heads"], layer_norm_eps=transformer["layer_norm_eps"]
        )

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute embedding, attention and tokens, and probabilities where the record has heads beside the file."""
        images, wanted = inputs["images"], record["cases"][case]["outputs"]
        paired = "pairing" in case or "paired with" in record["cases"][case]["words"].lower()
        if paired or images.shape[1] != len(encoder.channels.channels):  # type: ignore[arg-type]
            return {"features": self._features_of_pairs(encoder, images)}
        names = encoder.channels.channels
        batch = ChannelBatch.from_planes([list(image) for image in images], [names] * len(images))  # type: ignore[list-item]
        features = encoder.features(batch)
        outputs = {"features": features}
        dense = network_batch(encoder, batch)
        strategy: PooledChannels = encoder.channels  # type: ignore[assignment]
        attention = strategy.attention(dense)[:, :, 1:]  # (N, heads, h * w)
        backbone: VisionTransformer = strategy.backbone  # type: ignore[assignment]
        every = {
            "pool_attention": (attention, 2),
            "tokens_last": (strategy.tokens(dense), 1),
            "tokens_embedded": (backbone.embedded(strategy.pictures(dense)), 1),
        }
        for name in wanted:
            match = re.fullmatch(r"(\w+)_every_(\d+)(?:st|nd|rd|th)", name)
            if match and match[1] in every:
                tensor, axis = every[match[1]]
                index = torch.arange(0, tensor.shape[axis], int(match[2]))
                outputs[name] = tensor.index_select(axis, index)
        heads = [file for file in record.get("files", ()) if "classifier" in file]
        if "probabilities" in wanted and heads:
            classifier = self.read_classifier(*(checkpoint.path.with_name(file) for file in sorted(heads)))
            outputs["probabilities"] = classifier.to(features.dtype)(features)
        return outputs

    def _features_of_pairs(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Embed images whose first channel is the nucleus, as pairs, (N, C - 1, D); the other names do not matter."""
        strategy: PooledChannels = encoder.channels  # type: ignore[assignment]
        others = (name for name in channel_vocabulary() if name != strategy.channels[0])
        partners = list(islice(others, images.shape[1] - 1))
        backbone: VisionTransformer = deepcopy(strategy.backbone)  # type: ignore[assignment]
        paired = PairedChannels(backbone, strategy.channels[0], partners, strategy.pooling)
        paired.load_state_dict(strategy.state_dict())
        names = [strategy.channels[0], *partners]
        batch = ChannelBatch.from_planes([list(image) for image in images], [names] * len(images))
        own = Encoder(paired.to(encoder.device, next(strategy.parameters()).dtype), encoder.normalizer, None)
        return own.features(batch).reshape(len(images), len(partners), -1)


def _without_index(name: str, index: str) -> str:
    """Leave out the place of the linear layer in the gates, which a dropout before it shifts."""
    return re.sub(rf"^(pool_model\.attention_[uv])\.{index}\.", r"\1.", name)


def _outwards(state: Mapping[str, Tensor], index: str) -> dict[str, Tensor]:
    """Give tensors the authors' names, with queries, keys and values apart."""
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            parts = zip(_PARTS, tensor.chunk(3), strict=True)
            apart |= {name.replace(".qkv.", f".{part}."): piece.clone() for part, piece in parts}
        else:
            apart[name] = tensor
    gate = re.compile(r"(pool_model\.attention_[uv])\.")
    return {gate.sub(rf"\1.{index}.", name): tensor for name, tensor in _NAMES.outwards(apart).items()}


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join queries, keys and values."""
    joined: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attn.query." in name:
            parts = [tensors[name.replace(".query.", f".{part}.")] for part in _PARTS]
            joined[name.replace(".query.", ".qkv.")] = torch.cat(parts)
        elif ".attn.key." not in name and ".attn.value." not in name:
            joined[name] = tensor
    return joined
