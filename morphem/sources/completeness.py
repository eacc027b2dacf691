"""Images of a plane table whose rows cannot be right: two planes for one channel, or a channel that is missing."""

from collections import Counter, defaultdict
from collections.abc import Hashable

import pandas as pd

from morphem.data.schema import missing_in

_IMAGE, _NUMBER, _PANEL, _TYPE = (
    "imaging.multi_channel_id",
    "imaging.channel",
    "imaging.panel",
    "imaging.channel_type",
)
_PLACE = ("file", "plane_axis", "plane_index", "series", "geometry.z_slice", "geometry.timepoint")


def faulty_images(table: pd.DataFrame) -> dict[str, str]:
    """Return the images whose rows contradict each other or the study's other images, each with the reason.

    An image has two planes for one channel where a channel number repeats, where two rows name the same place in a
    file, or where rows without numbers share a stain's name. An image lacks a channel where its channels are a part of
    those that more images of its panel have.

    Args:
        table: A plane table with `imaging.multi_channel_id` and `imaging.channel_type`.
    """
    faults = _wrong_numbers(table)
    faults = {**_same_place(table), **_same_name(table), **faults}
    good = table[~table[_IMAGE].isin(list(faults))]
    faults |= _lacking(good)
    return {image: faults[image] for image in table[_IMAGE].unique() if image in faults}


def _wrong_numbers(table: pd.DataFrame) -> dict[str, str]:
    if _NUMBER not in table.columns:
        return {}
    said = table[~missing_in(table[_NUMBER])]
    wrong = ~said[_NUMBER].str.fullmatch(r"0*[1-9]\d*") | said.duplicated([_IMAGE, _NUMBER], keep=False)
    without = table.loc[missing_in(table[_NUMBER]), _IMAGE].unique()
    images = {*said.loc[wrong, _IMAGE], *said.loc[said[_IMAGE].isin(without), _IMAGE]}
    return {
        str(image): (
            f"image '{image}' has the channel numbers {', '.join(rows[_NUMBER])}; "
            "each plane of an image needs a number of its own, from 1" + _files(rows) + "."
        )
        for image, rows in _groups(table, images)
    }


def _same_place(table: pd.DataFrame) -> dict[str, str]:
    if "file" not in table.columns:
        return {}
    place = [_IMAGE, *(column for column in _PLACE if column in table.columns)]
    twice = table[table.duplicated(place, keep=False)]
    return {
        str(
            image
        ): f"image '{image}' takes one plane of '{rows['file'].iloc[0]}' twice; correct plane_axis or plane_index."
        for image, rows in _groups(twice, set(twice[_IMAGE]))
    }


def _same_name(table: pd.DataFrame) -> dict[str, str]:
    """Two planes of one stain, where no number tells that this is meant."""
    if "channel_name" not in table.columns:
        return {}
    said = ~missing_in(table["channel_name"])
    if _NUMBER in table.columns:
        said &= missing_in(table[_NUMBER])
    named = table[said]
    twice = named[named.duplicated([_IMAGE, "channel_name"], keep=False)]
    return {
        str(image): (
            f"image '{image}' has two planes for the channel '{rows['channel_name'].iloc[0]}'{_files(rows)}; "
            "keep one of them, or give them different images or numbers."
        )
        for image, rows in _groups(twice, set(twice[_IMAGE]))
    }


def _files(rows: pd.DataFrame) -> str:
    names = list(dict.fromkeys(rows.get("file", pd.Series(dtype=str))))[:3]
    return f" (in {', '.join(names)})" if names else ""


def _groups(table: pd.DataFrame, images: "set[str]") -> "list[tuple[Hashable, pd.DataFrame]]":
    chosen = table[table[_IMAGE].isin(list(images))]
    return list(chosen.groupby(_IMAGE, sort=False)) if len(chosen) else []


def _lacking(table: pd.DataFrame) -> dict[str, str]:
    """Images whose channels are fewer than those of the many."""
    names = _channel_keys(table)
    panels = table.get(_PANEL, pd.Series("", index=table.index))
    sets: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for panel, image, name in zip(panels, table[_IMAGE], names, strict=True):
        sets[panel][image].add(name)
    faults: dict[str, str] = {}
    for of_panel in sets.values():
        counts = Counter(map(frozenset, of_panel.values()))
        larger = {have: _larger(have, counts) for have in counts}
        for image, have in of_panel.items():
            if missing := larger[frozenset(have)]:
                faults[image] = (
                    f"image '{image}' lacks the channel{'s' if len(missing) > 1 else ''} "
                    f"{', '.join(sorted(missing))} that other images have; add the file, or give such images an "
                    "'imaging.panel' of their own."
                )
    return faults


def _channel_keys(table: pd.DataFrame) -> "pd.Series[str]":
    """Name of each channel, numbered where it repeats within an image."""
    types = table[_TYPE]
    named = table.get("channel_name", types)
    names = named.where(~missing_in(named), types)
    repeat = names.groupby([table[_IMAGE], names]).cumcount()
    return names.where(repeat == 0, names + " " + (repeat + 1).astype(str))


def _larger(have: frozenset[str], counts: Counter[frozenset[str]]) -> frozenset[str]:
    """Return what a set of channels lacks of the most common one that contains it and is more common."""
    above = [other for other, count in counts.items() if have < other and count > counts[have]]
    return max(above, key=lambda other: counts[other]) - have if above else frozenset()
