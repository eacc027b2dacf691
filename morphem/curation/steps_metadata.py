"""Curation by what is written about an image: no pixel is read.

Source: the curation of CHAMMI-75, https://arxiv.org/abs/2512.20833, appendix A: z-planes, frames and control wells.
The paper states the central 20 % of z-planes; the other numbers, and all rounding, are ours.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.curation.step import (
    Floats,
    Mask,
    Needs,
    Step,
    check_count,
    check_share,
    check_texts,
    count_of,
    groups,
    images_of,
    texts,
)
from morphem.data.schema import UNKNOWN
from morphem.errors import ConfigError, DataError, nearest
from morphem.rng import mix

Z, TIME = "geometry.z_slice", "geometry.timepoint"
_PLACE = (
    "experiment.plate",
    "experiment.well",
    "experiment.reagent",
    "experiment.control",
    "biology.organism",
    "biology.cell_line",
    "biology.cell_type",
    "imaging.panel",
    "microscopy.type",
    "microscopy.magnification",
    "microscopy.fov",
)
"""Columns that the planes of one stack, or the frames of one movie, have in common."""
_FILE = ("file", "series")
"""What tells stacks apart where wells and fields of view do not."""


class _Series(Step):
    """Base of the steps that keep some images of every stack or movie.

    Args:
        by: Columns that the images of a stack or movie have in common, besides the study; where not given, plate,
            well, reagent, control, organism, cell, panel, microscope, field of view, and the frame (of a stack) or
            the slice (of a movie); then, where these leave two images with one number, the file.
        studies: The only studies that the step looks at; all where not given.
    """

    needs: ClassVar[Needs] = "metadata"
    varied: ClassVar[str]
    fixed: ClassVar[str]

    def __init__(self, by: Sequence[str] = (), studies: Sequence[str] = ()) -> None:
        super().__init__(studies)
        self.by = check_texts(self.name, "by", by)

    def chosen(self, places: NDArray[np.int64], lengths: NDArray[np.int64]) -> Mask:
        """Say which images stay.

        Args:
            places: Place of every image in its stack or movie, from 0, (N,).
            lengths: Images in it, (N,).
        """
        raise NotImplementedError

    def keep(self, planes: pd.DataFrame, features: Floats | None, seed: int) -> Mask:
        """Keep the chosen places of every series, and every image without a number."""
        images = images_of(planes)
        numbered = _numbers(images, self.varied)
        mask: Mask = np.ones(len(images), np.bool_)
        known = ~np.isnan(numbered)
        if known.any():
            subset, values = images[known].reset_index(drop=True), numbered[known]
            series = self._series(subset, values)
            mask[known] = self.chosen(*_places(series, values))
        return mask

    def remark(self, planes: pd.DataFrame) -> str | None:
        """Say how many images have no number, where others have one."""
        values = np.isnan(_numbers(images_of(planes), self.varied))
        if values.all() or not values.any():
            return None
        return f"{self.name}: {values.sum()} of {len(values)} images have no number in {self.varied} and were kept"

    def _series(self, images: pd.DataFrame, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Number the stacks or movies, (N,)."""
        keys = self._keys(images)
        series = groups(keys, list(keys.columns))
        mixed = _repeats(series, values) & _varies(series, values)
        if mixed.any():
            series = self._by_file(images, values, series, mixed)
        # several images of one number are no series: each is alone
        own = np.where(_varies(series, values), -1, np.arange(len(series)))
        return groups(pd.DataFrame({"series": series, "own": own}), ["series", "own"])

    def _by_file(
        self, images: pd.DataFrame, values: NDArray[np.float64], series: NDArray[np.int64], mixed: Mask
    ) -> NDArray[np.int64]:
        """Split the series in which numbers are repeated by file, (N,)."""
        files = pd.DataFrame({column: texts(images, column) for column in _FILE if not self.by}, index=images.index)
        finer = groups(files, list(files.columns))
        split = groups(pd.DataFrame({"series": series, "finer": np.where(mixed, finer, -1)}), ["series", "finer"])
        alone = np.bincount(split)[split] == 1  # a file per plane tells nothing
        wrong = (_repeats(split, values) & _varies(split, values)) | (mixed & _all_of(series, alone))
        if wrong.any():
            names = images["imaging.multi_channel_id"][series == series[wrong.argmax()]]
            raise DataError(
                f"the step '{self.name}' cannot tell which images belong together: '{names.iloc[0]}', "
                f"'{names.iloc[1]}' and {len(names) - 2} more agree in {', '.join(self.by) or 'plate, well and field'} "
                f"and repeat their {self.varied}; name the columns that tell them apart in '{self.name}.by'."
            )
        return split

    def _keys(self, images: pd.DataFrame) -> pd.DataFrame:
        unknown = [column for column in self.by if column not in images]
        if unknown:
            close = nearest(unknown[0], map(str, images.columns), count=1)
            hint = f"did you mean '{close[0]}'?" if close else f"columns: {', '.join(map(str, images.columns))}."
            raise ConfigError(f"{self.name}.by names the column '{unknown[0]}', which the study does not have; {hint}")
        return pd.DataFrame({column: texts(images, column) for column in self.by or (*_PLACE, self.fixed)})


class CentralZPlanes(_Series):
    """Keep the central share of the planes of every z-stack.

    Of n planes, k = share * n stay (rounded half up, at least 1): those from place (n - k) // 2 on, in the order of
    their slice numbers. Places count the planes that are there, not those that the microscope may have left out.

    Args:
        share: Above 0, at most 1; the paper keeps 0.2.
        by: Columns that the planes of a stack have in common; see the page on curation for the default.
        studies: The only studies that the step looks at; all where not given.
    """

    name: ClassVar[str] = "central_z_planes"
    varied: ClassVar[str] = Z
    fixed: ClassVar[str] = TIME

    def __init__(self, share: float = 0.2, by: Sequence[str] = (), studies: Sequence[str] = ()) -> None:
        super().__init__(by, studies)
        self.share = check_share(self.name, "share", share)

    def chosen(self, places: NDArray[np.int64], lengths: NDArray[np.int64]) -> Mask:
        """Keep the places in the middle."""
        different, which = np.unique(lengths, return_inverse=True)
        counts = np.array([count_of(self.share, int(length)) for length in different], np.int64)[which]
        first = (lengths - counts) // 2
        return (places >= first) & (places < first + counts)


class EvenlySpacedFrames(_Series):
    """Keep some frames of every movie, evenly spaced, the first and the last among them.

    Of n frames, those at the places i * (n - 1) / (count - 1) for i = 0 to count - 1 stay (rounded half up); with a
    count of 1 the middle one, (n - 1) // 2; all, where there are no more than `count`.

    Args:
        count: Frames to keep of every movie, at least 1.
        by: Columns that the frames of a movie have in common; see the page on curation for the default.
        studies: The only studies that the step looks at; all where not given.
    """

    name: ClassVar[str] = "evenly_spaced_frames"
    varied: ClassVar[str] = TIME
    fixed: ClassVar[str] = Z

    def __init__(self, count: int, by: Sequence[str] = (), studies: Sequence[str] = ()) -> None:
        super().__init__(by, studies)
        self.count = check_count(self.name, "count", count)

    def chosen(self, places: NDArray[np.int64], lengths: NDArray[np.int64]) -> Mask:
        """Keep evenly spaced places."""
        mask: Mask = lengths <= self.count
        for length in np.unique(lengths[~mask]):
            mask |= (lengths == length) & np.isin(places, evenly_spaced(int(length), self.count))
        return mask


class ControlWells(Step):
    """Keep a share of the control wells of every plate, and every well that is no control.

    A plate may hold several kinds of controls (`experiment.control` is `no` for a treated sample, else the kind); the
    share is taken of each, so that no kind is lost. Of n wells, share * n stay (rounded half up, at least 1), chosen by
    lot; the lot of a well depends on the seed and its name alone, so other wells and their order change nothing.

    Args:
        share: Above 0, at most 1.
        studies: The only studies that the step looks at; all where not given.
    """

    name: ClassVar[str] = "control_wells"
    needs: ClassVar[Needs] = "metadata"

    def __init__(self, share: float, studies: Sequence[str] = ()) -> None:
        super().__init__(studies)
        self.share = check_share(self.name, "share", share)

    def keep(self, planes: pd.DataFrame, features: Floats | None, seed: int) -> Mask:
        """Keep the chosen control wells and all others."""
        images = images_of(planes)
        wells = _wells(images)[is_control(images) & (texts(images, "experiment.well") != UNKNOWN)]
        dropped: set[tuple[str, ...]] = set()
        for _, one_kind in wells.drop_duplicates().groupby(["plate", "kind"], sort=False):
            names = [tuple(map(str, row)) for row in one_kind.itertuples(index=False)]
            names.sort(key=lambda name: (mix(seed, *name), name))
            dropped.update(names[count_of(self.share, len(names)) :])
        gone = [tuple(map(str, row)) in dropped for row in wells.itertuples(index=False)]
        mask: Mask = np.ones(len(images), np.bool_)
        mask[wells.index[gone]] = False
        return mask

    def remark(self, planes: pd.DataFrame) -> str | None:
        """Say that no well is a control, or that controls have no well."""
        images = images_of(planes)
        controls = is_control(images)
        if not controls.any():
            return f"{self.name}: no image is marked as a control in experiment.control"
        lost = int((controls & (texts(images, "experiment.well") == UNKNOWN)).sum())
        return f"{self.name}: {lost} images of controls have no well and were kept" if lost else None


def is_control(images: pd.DataFrame) -> "pd.Series[bool]":
    """Whether every image is of a control.

    Args:
        images: One row per image.
    """
    return ~texts(images, "experiment.control").str.casefold().isin(["no", UNKNOWN])


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return places in a row of things, the first and the last among them.

    Args:
        length: Number of things, at least `count`.
        count: Number of places, at least 1.
    """
    if count == 1:
        return [(length - 1) // 2]
    gaps = count - 1
    return [(2 * i * (length - 1) + gaps) // (2 * gaps) for i in range(count)]  # rounded half up, in whole numbers


def _wells(images: pd.DataFrame) -> pd.DataFrame:
    columns = {"plate": "experiment.plate", "kind": "experiment.control", "well": "experiment.well"}
    return pd.DataFrame({short: texts(images, column) for short, column in columns.items()})


def _numbers(images: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Return slice or frame of every image, NaN where it is no number (`unknown`, `all`, a projection)."""
    return np.asarray(pd.to_numeric(texts(images, column), errors="coerce"), np.float64)


def _places(series: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the place of every image in its series, by value, and the length of the series; both (N,)."""
    order = np.lexsort((values, series))
    lengths = np.bincount(series)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    places = np.empty(len(series), np.int64)
    places[order] = np.arange(len(series)) - starts[series[order]]
    return places, lengths[series]


def _repeats(series: NDArray[np.int64], values: NDArray[np.float64]) -> Mask:
    """Whether every image is in a series that has a number twice, (N,)."""
    order = np.lexsort((values, series))
    again = (np.diff(series[order]) == 0) & (np.diff(values[order]) == 0)
    result: Mask = np.isin(series, series[order][1:][again])
    return result


def _varies(series: NDArray[np.int64], values: NDArray[np.float64]) -> Mask:
    """Whether every image is in a series of different numbers, (N,)."""
    return ~_all_of(series, values == values[_first_of(series)])


def _first_of(series: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first image of every image's series, (N,)."""
    return np.unique(series, return_index=True)[1][series]


def _all_of(series: NDArray[np.int64], flags: Mask) -> Mask:
    """Whether all images of every image's series have a flag, (N,)."""
    result: Mask = (np.bincount(series, weights=flags) == np.bincount(series))[series]
    return result
