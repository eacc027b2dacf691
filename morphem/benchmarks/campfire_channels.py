"""Campfire's channel study: the same cells seen through some of their channels, also such as training never showed.

Features of channels side by side (`combine: concat`) are cut by the channel of each column. An encoder that mixes the
channels of an image has no such columns: embed its images again with a `query` for each panel.

Source: Hurry et al. 2025 (Campfire), channel study; panels as in GSK-AI/campfire at b034f8d.
"""

from collections.abc import Mapping

import numpy as np

from morphem.errors import ConfigError, DataError, unknown_name
from morphem.features import FeatureTable
from morphem.vocabulary import resolve_name

_ACTIN = "actin golgi plasma membrane"
_SAME = {"actin": _ACTIN}  # either is what JUMP calls AGP
PANELS: Mapping[str, tuple[str, ...]] = {
    "nu": ("nucleus",),
    "mito": ("mitochondria",),
    "agp": (_ACTIN,),
    "nu_agp": ("nucleus", _ACTIN),
    "nu_mito": ("nucleus", "mitochondria"),
    "nu_agp_mito": ("nucleus", _ACTIN, "mitochondria"),
    "nu_er_rna": ("nucleus", "endoplasmic reticulum", "rna"),
}
"""The published panels. Training knew the channels of `nu_agp_mito`; it never saw two of `nu_er_rna`."""


def panel_channels(panel: str) -> tuple[str, ...]:
    """Return the channel types of a panel.

    Args:
        panel: A published one by name, or channel types joined by `+`, for example `nucleus+rna`.

    Raises:
        ConfigError: If there is no such panel or channel type.
    """
    if panel in PANELS:
        return PANELS[panel]
    if "+" not in panel and not panel.strip():
        raise ConfigError(unknown_name("panel of campfire", panel, PANELS))
    names = []
    for name in panel.split("+"):
        try:
            names.append(resolve_name(name.strip()))
        except ValueError as fault:
            known = ", ".join(PANELS)
            raise ConfigError(f"campfire: panel='{panel}' is none of {known}, and no channel types: {fault}") from fault
    if len(set(names)) != len(names):
        raise ConfigError(f"campfire: panel='{panel}' names a channel twice.")
    return tuple(names)


def of_channels(table: FeatureTable, channels: tuple[str, ...], where: str = "campfire") -> FeatureTable:
    """Return a table with the features of some channels alone.

    Args:
        table: Its dictionary says of which channel every feature is.
        channels: Channel types.
        where: Who asks, for the message.

    Raises:
        DataError: If features are not of single channels, or a channel has none.
    """
    own = [_same(str(entry["channel"])) for entry in table.dictionary]
    if not any(own) or any(str(entry.get("kind", "channel")) != "channel" for entry in table.dictionary):
        raise DataError(
            f"{where}: the features are not of single channels, so no panel can be cut out; embed with "
            "combine=concat, or embed again with a query of channel planes."
        )
    asked = [_same(name) for name in channels]
    lost = [name for name in asked if name not in own]
    if lost:
        raise DataError(f"{where}: {unknown_name('channel of the features', lost[0], sorted(set(own)))}")
    keep = np.flatnonzero([name in asked for name in own])
    return FeatureTable(
        np.ascontiguousarray(table.values[:, keep]),
        table.metadata,
        tuple(table.columns[i] for i in keep),
        tuple(table.dictionary[i] for i in keep),
        table.provenance,
    )


def panels_of(table: FeatureTable) -> dict[str, tuple[str, ...]]:
    """Return the published panels whose channels a table has."""
    own = {_same(str(entry["channel"])) for entry in table.dictionary}
    return {name: channels for name, channels in PANELS.items() if set(channels) <= own}


def _same(channel: str) -> str:
    return _SAME.get(channel, channel)
