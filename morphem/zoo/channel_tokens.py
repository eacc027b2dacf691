"""Networks with one embedding per channel type, as ChannelViT has them: their weights under our names, and back.

Source: insitro/ChannelViT at 1077a10, CaicedoLab/CHAMMI-75 at b84a4ec, chaudatascience/diverse_channel_vit at c22ed15,
shermanlian/IC-ViT at e191997: four copies of one network that differ in names and in the layout of two tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from morphem.backbones.vit import VisionTransformer
from morphem.channels.channel_attention import ChannelAttention
from morphem.errors import WeightsError
from morphem.zoo.single_vit import PROJECTION, build
from morphem.zoo.strictness import load_renamed, needed, without_memory

_NETWORK = "backbone.network."
_TABLE = "channel_embedding"


@dataclass(frozen=True)
class Layout:
    """How a family stores what the copies of the network store differently.

    Attributes:
        table: Name of the channel embeddings.
        table_form: `rows`, (C, D), or `map`, (1, D, C, 1, 1).
        projection_axes: Axes of the patch projection: 5, (D, 1, 1, ph, pw), or 4, (D, 1, ph, pw).
    """

    table: str
    table_form: Literal["rows", "map"]
    projection_axes: Literal[4, 5] = 5

    def fits(self, tensors: Mapping[str, Any]) -> bool:
        """Whether tensors have the names and axes of this layout."""
        table, projection = tensors.get(self.table), tensors.get(PROJECTION)
        if not isinstance(table, Tensor) or not isinstance(projection, Tensor) or "cls_token" not in tensors:
            return False
        axes = 2 if self.table_form == "rows" else 5
        return table.ndim == axes and projection.ndim == self.projection_axes and projection.shape[1] == 1

    def count(self, tensors: Mapping[str, Tensor]) -> int:
        """Return how many channels have an embedding."""
        table = tensors[self.table]
        return len(table) if self.table_form == "rows" else int(table.shape[2])

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state of a `ChannelAttention` for tensors of the authors."""
        state = {f"{_NETWORK}{name}": value for name, value in tensors.items() if name != self.table}
        if self.projection_axes == 5:
            state[f"{_NETWORK}{PROJECTION}"] = tensors[PROJECTION].squeeze(2)
        table = tensors[self.table]
        state[_TABLE] = table if self.table_form == "rows" else table[0, :, :, 0, 0].T.contiguous()
        return state

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Undo `to_ours`."""
        tensors = {name.removeprefix(_NETWORK): value for name, value in state.items() if name != _TABLE}
        if self.projection_axes == 5:
            tensors[PROJECTION] = tensors[PROJECTION].unsqueeze(2)
        table = state[_TABLE]
        tensors[self.table] = table if self.table_form == "rows" else table.T[None, :, :, None, None].contiguous()
        return tensors


@dataclass(frozen=True)
class Channels:
    """The channel types of a table, in its order.

    Attributes:
        names: Channel types, or names that are known to these weights alone.
        own_names: What the authors call the channels, each with the one of `names` or `aliases` that it stands for.
        aliases: Further channels, each with the one of `names` whose embedding it uses.
    """

    names: tuple[str, ...]
    own_names: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


def channel_attention(
    tensors: Mapping[str, Tensor], layout: Layout, channels: Channels, n_heads: int | None, source: str, **options: Any
) -> ChannelAttention:
    """Build the channel strategy that tensors of the authors belong to.

    Args:
        tensors: Under the authors' names, without prefix.
        layout: Of these tensors.
        channels: One for each row of the table.
        n_heads: Attention heads; None for those of the published network of that width.
        source: Where the tensors come from, for messages.
        options: Further settings of `ChannelAttention`.

    Raises:
        WeightsError: If tensors are missing or left over, or there are not as many channels as rows.
    """
    needed(tensors, ("cls_token", "pos_embed", PROJECTION, layout.table), source, "encoder of this family")
    if not layout.fits(tensors):
        shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in (PROJECTION, layout.table))
        raise WeightsError(f"{source} stores {shapes}, which this family does not.")
    count = layout.count(tensors)
    if count != len(channels.names):
        raise WeightsError(
            f"{source} has embeddings of {count} channels, but {len(channels.names)} are named "
            f"({', '.join(channels.names)}); name one for each, in the order of the table."
        )
    with without_memory():
        strategy = ChannelAttention(
            vision_transformer(tensors, n_heads, source),
            channels.names,
            dict(channels.aliases) or None,
            nudged_positions=True,
            own_names=dict(channels.own_names) or None,
            **options,
        )
    load_renamed(strategy, tensors, layout.to_ours, layout.to_theirs, source)
    return strategy


def vision_transformer(
    tensors: Mapping[str, Tensor], n_heads: int | None, source: str, default_heads: int = 6, **options: Any
) -> VisionTransformer:
    """Build the transformer whose sizes tensors of DINO's names show; no weights are copied.

    Args:
        tensors: Under DINO's names, without prefix; the patch projection may have three dimensions.
        n_heads: Attention heads; None for those of the published network of that width.
        source: Where the tensors come from, for messages.
        default_heads: For other widths.
        options: Further settings of `VisionTransformer`.

    Raises:
        WeightsError: If a tensor is missing, or the shapes do not go together.
    """
    projection = tensors[PROJECTION]
    flat = {**tensors, PROJECTION: projection.squeeze(2) if projection.ndim == 5 else projection}
    return build(flat, source, "vision transformer", n_heads, default_heads, **options)
