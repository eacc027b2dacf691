"""What is missing on a plate: every well should have every site, and every site every channel."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from morphem.data.schema import UNKNOWN, is_missing

_TYPE, _PLATE, _WELL, _SITE = "imaging.channel_type", "experiment.plate", "experiment.well", "microscopy.fov"


@dataclass(frozen=True)
class PlateGaps:
    """What a plate has, against every well with every site and every channel.

    Attributes:
        plate: Its name.
        wells: Wells with at least one plane.
        sites: Sites that at least half of the wells have; where each well numbers its own, the most that a well has.
        channels: Channels that at least one image has.
        planes: Planes found, of those wells, sites and channels; slices and frames of a stack count once.
        missing: For each well that lacks something: the sites, and the channels that these lack (empty means all).
    """

    plate: str
    wells: int
    sites: int
    channels: int
    planes: int
    missing: dict[str, list[tuple[str, tuple[str, ...]]]]

    @property
    def expected(self) -> int:
        """Planes that a plate without gaps has."""
        return self.wells * self.sites * self.channels


def is_unknown(value: str) -> bool:
    """Whether a text of a plane table tells nothing.

    Args:
        value: As in the table.
    """
    return is_missing(value) or value == UNKNOWN


def find_gaps(table: pd.DataFrame) -> Iterator[PlateGaps]:
    """Compare each plate with one on which every well has every site and every channel.

    A site that fewer than half of a plate's wells have is not expected of the others. Where no site is that common
    (some microscopes number sites through the plate), the first site of each well is compared with the first of the
    others, and so on.

    Args:
        table: Plane table; plates without known wells are left out.
    """
    if not {_WELL, _TYPE} <= set(table.columns):
        return
    names = table["channel_name"] if "channel_name" in table else table[_TYPE]
    planes = pd.DataFrame(
        {
            "plate": table.get(_PLATE, UNKNOWN),
            "well": table[_WELL],
            "site": table.get(_SITE, ""),
            "channel": names.where(~names.map(is_unknown), table[_TYPE]),
        }
    ).drop_duplicates()
    planes = planes[~planes["well"].map(is_unknown)]
    for plate, found in planes.groupby("plate", sort=True):
        yield _gaps_of_plate(str(plate), found)


def _gaps_of_plate(plate: str, found: pd.DataFrame) -> PlateGaps:
    wells = sorted(found["well"].unique(), key=_natural)
    sites = _common_sites(found, len(wells))
    if not sites:
        ranks = found.groupby("well")["site"].rank("dense").astype(int)
        found = found.assign(site="number " + ranks.astype(str))
        sites = sorted(found["site"].unique(), key=_natural)
    channels = list(found["channel"].drop_duplicates())
    have: dict[tuple[str, str], set[str]] = {}
    for well, site, channel in zip(found["well"], found["site"], found["channel"], strict=True):
        have.setdefault((well, site), set()).add(channel)
    missing: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    n_planes = 0
    for well in wells:
        for site in sites:
            present = have.get((well, site), set())
            n_planes += len(present)
            if len(present) < len(channels):
                lacking = tuple(channel for channel in channels if channel not in present) if present else ()
                missing.setdefault(well, []).append((site, lacking))
    return PlateGaps(plate, len(wells), len(sites), len(channels), n_planes, missing)


def _common_sites(found: pd.DataFrame, n_wells: int) -> list[str]:
    per_site = found.groupby("site")["well"].nunique()
    return sorted((str(site) for site, n in per_site.items() if 2 * n >= n_wells), key=_natural)


def _natural(text: str) -> tuple[int, str, str]:
    """Sorts numbers by value, and before words."""
    return (0, text.zfill(12), text) if text.isdecimal() else (1, text, text)
