"""IC-ViT: a transformer pre-trained on single channels, and fine-tuned on all channels of an image.

Source: shermanlian/IC-ViT at e191997 (MIT), Lian et al. 2025, https://arxiv.org/abs/2503.09826. After pre-training with
DINO the teacher's backbone is exported without prefix; fine-tuning adds an embedding per channel.
Differs from it: nothing in the numbers; the sizes that the authors' augmentations are wired to are not needed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

from torch import Tensor

from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.named_bag import NamedBag
from morphem.encoder import Encoder
from morphem.zoo.base import ByHand, Checkpoint, Pretrained, Record
from morphem.zoo.channel_tokens import Layout, channel_attention, vision_transformer
from morphem.zoo.data_sets import JUMPCP, SO2SAT_HARD, DataSet, data_set, from_record
from morphem.zoo.replaying import as_published, embed, is_of
from morphem.zoo.single_vit import PROJECTION
from morphem.zoo.strictness import load_renamed, needed, without_memory

_PREFIX = "backbone."
_LAYOUT = Layout("patch_embed.channel_embed.weight", "rows", projection_axes=4)
_OURS = "backbone.network."
_ALONE = ("cls_token", "pos_embed", PROJECTION, "blocks.0.attn.qkv.weight", "norm.weight")
_PARTS = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
_LEFT_OUT = "classifier."
_CONVERTED = "Take it from the authors' folder, or train it with their code and run convert_dino_checkpoint.py"


def _location(file: str, words: str) -> ByHand:
    return ByHand("https://github.com/shermanlian/IC-ViT", file, f"{words}, and give it this name.")


_PRETRAINED = Record(
    name="icvit-jumpcp-pretrained",
    summary="IC-ViT-S/16, DINO on single channels of JUMP-CP: 384 features per channel",
    location=_location("icvit_jumpcp_pretrained.pth", _CONVERTED),
    license="MIT",
    restricted=False,
    citation="Lian et al. 2025, Isolated Channel Vision Transformers, arXiv:2503.09826",
    source="https://github.com/shermanlian/IC-ViT at e191997",
    exported="teacher",
    input_domain="uint8",
    preparation="values 0 to 255, minus mean, over standard deviation of each channel of the data set; no resize",
    native_size_px=224,
    pooling="class token after the final LayerNorm, per channel",
    channel_rule=f"each alone, any of the 8 with statistics: {', '.join(JUMPCP.names)}",
    embed_dim=384,
    facts={"n_heads": 6, "data_set": "jumpcp"},
    vocabulary=JUMPCP.names,
)


class ICViT(Pretrained):
    """Both forms: pre-trained on single channels, and fine-tuned on several.

    Args:
        n_heads: Attention heads, which no shape shows. Where not given, those of the published network of that width.
        data_set: Whose channels and statistics: `jumpcp`, `so2sat_hard` (see `morphem.zoo.data_sets`), or a `DataSet`.
        accidental_positions: Also repeat what the authors' code does by accident; see `ChannelAttention`. It acts
            on fine-tuned networks alone.
    """

    records: ClassVar[tuple[Record, ...]] = (
        _PRETRAINED,
        replace(
            _PRETRAINED,
            name="icvit-jumpcp-finetuned",
            summary="IC-ViT-S/16, fine-tuned with labels on all channels of JUMP-CP: 384 features per image",
            location=_location(
                "icvit_jumpcp_finetuned.ckpt",
                "Take the Lightning checkpoint from the authors' folder, or of their main_supervised.py",
            ),
            exported="only",
            pooling="class token after the final LayerNorm",
            channel_rule=f"any of 8 types: {', '.join(JUMPCP.names)}",
        ),
        replace(
            _PRETRAINED,
            name="icvit-so2sat-pretrained",
            location=_location("icvit_so2sat_pretrained.pth", _CONVERTED),
            summary="IC-ViT-S/8, DINO on single channels of So2Sat, 32 px: 384 features per channel",
            input_domain="unknown",
            native_size_px=32,
            channel_rule="each alone, any of the 18 bands of So2Sat",
            facts={"n_heads": 6, "data_set": "so2sat_hard"},
            vocabulary=SO2SAT_HARD.names,
        ),
    )

    def __init__(
        self, n_heads: int | None = None, data_set: str | DataSet = "jumpcp", accidental_positions: bool = False
    ) -> None:
        self.n_heads = n_heads
        self.data_set = data_set
        self.accidental_positions = accidental_positions

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file is a fine-tuned checkpoint, or the bare backbone and nothing else."""
        if _LAYOUT.fits(checkpoint.under(_PREFIX, "state_dict")):
            return True
        content = checkpoint.content
        bare = all(isinstance(content.get(name), Tensor) for name in _ALONE)
        if not bare or not all(str(name).startswith(_PARTS) for name in content) or _LAYOUT.table in content:
            return False
        return bool(content[PROJECTION].ndim == 4 and content[PROJECTION].shape[1] == 1)

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder; a fine-tuned checkpoint's `classifier.*` is left out."""
        own, source = data_set(self.data_set), str(checkpoint.path)
        everything = checkpoint.under("", "state_dict")
        if any(name.startswith(_PREFIX) for name in everything):
            tensors = {name.removeprefix(_PREFIX): value for name, value in everything.items() if _kept(name)}
            strategy: ChannelAttention | NamedBag
            accidents = {"accidental_positions": self.accidental_positions}
            strategy = channel_attention(tensors, _LAYOUT, own.channels, self.n_heads, source, **accidents)
        else:
            needed(everything, _ALONE, source, "IC-ViT encoder")
            with without_memory():
                network = vision_transformer(everything, self.n_heads, source)
                strategy = NamedBag(network, own.types, own.channels.own_names)
            load_renamed(strategy, everything, _to_ours, _to_theirs, source)
        encoder = Encoder(strategy, own.normalizer(), own.input_size_px, own.interpolation).eval()
        encoder.card = {"exported": "teacher" if isinstance(strategy, NamedBag) else "only"}
        return encoder

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the bare backbone, or that of a fine-tuned checkpoint with its prefix."""
        state = encoder.channels.state_dict()
        if isinstance(encoder.channels, NamedBag):
            return _to_theirs(state)
        return {f"{_PREFIX}{name}": value for name, value in _LAYOUT.to_theirs(state).items()}

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Take heads and statistics of the record."""
        if not is_of(record, "IC-ViT", "icvit"):
            return None
        return cls(record["constructor"]["num_heads"], from_record(record))

    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute a case; channels alone are put side by side.

        Positions of several channels are those of the authors at every size, accidents included (`ChannelAttention`).
        """
        images = list(inputs["images"])
        if "channel_ids" in inputs:
            return {"features": embed(as_published(encoder), images, inputs["channel_ids"].tolist())}
        return {"features": embed(encoder, images, [inputs["channels"]] * len(images))}


def _kept(name: str) -> bool:
    return not name.startswith(_LEFT_OUT)


def _to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{_OURS}{name}": value for name, value in tensors.items()}


def _to_theirs(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_OURS): value for name, value in state.items()}
