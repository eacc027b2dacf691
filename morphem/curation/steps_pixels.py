"""Curation by what was measured on the planes of an image, and by queries on its columns.

Source: the curation of CHAMMI-75, https://arxiv.org/abs/2512.20833, appendix A, for the intensity filter (its limits
are not published; the rules here are ours); Kim et al. for the share of foreground in the nucleus channel
(https://github.com/Bayer-Group/CellPaintSSL at a2625b0).
"""

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from morphem.curation.step import (
    Floats,
    Mask,
    Needs,
    Step,
    check_choice,
    check_number,
    check_share,
    check_text,
    groups,
    image_numbers,
    numbers,
    texts,
)
from morphem.data.query import compile_query
from morphem.data.schema import COLUMNS, is_missing, resolve_channel
from morphem.errors import ConfigError

PlaneRule = Literal["any", "all"]
_MEASURED = re.compile(r"\bquality\.|\b(n_cells|clip_low|clip_high)\b")
_MAD_TO_SIGMA = 1.4826  # makes the median absolute deviation of normal numbers their standard deviation


class Intensity(Step):
    """Drop images with planes that are too dark for their study.

    Planes are compared with those of their channel type in their study, by the mean of their raw pixels. Give one of
    two rules. `deviations`: a plane is too dark when its mean is below median - deviations * 1.4826 * MAD, with the
    median and the median absolute deviation of the means; it does not depend on the offset or gain of the camera, and
    finds nothing where half of the planes are dark. `darkest`: as many planes as this share of them, rounded down,
    are too dark; of equal means all or none.

    Args:
        deviations: At least 0; 3 is usual.
        darkest: Above 0, at most 1.
        planes: An image goes when `any` or when `all` of its planes are too dark. It is never split.
        studies: The only studies that the step looks at; all where not given.
    """

    name: ClassVar[str] = "intensity"
    needs: ClassVar[Needs] = "quality"

    def __init__(
        self,
        deviations: float | None = None,
        darkest: float | None = None,
        planes: PlaneRule = "any",
        studies: Sequence[str] = (),
    ) -> None:
        super().__init__(studies)
        if (deviations is None) == (darkest is None):
            raise ConfigError("intensity needs one rule: 'deviations' (for example 3) or 'darkest' (for example 0.05).")
        self.deviations = None if deviations is None else check_number(self.name, "deviations", deviations, 0)
        self.darkest = None if darkest is None else check_share(self.name, "darkest", darkest)
        self.planes = check_choice(self.name, "planes", planes, ("any", "all"))

    def keep(self, planes: pd.DataFrame, features: Floats | None, seed: int) -> Mask:
        """Keep the images whose planes are bright enough."""
        means = numbers(planes, "quality.mean", self.name)
        kinds = groups(pd.DataFrame({"kind": texts(planes, "imaging.channel_type")}), ["kind"])
        dark: Mask = np.zeros(len(planes), np.bool_)
        for kind in np.unique(kinds):
            same = kinds == kind
            dark[same] = means[same] < self._limit(means[same])
        return _images_where(planes, ~dark, "all" if self.planes == "any" else "any")

    def _limit(self, means: Floats) -> float:
        """Return the mean below which a plane is too dark."""
        if self.darkest is not None:
            ordered = np.sort(means)
            count = math.floor(round(self.darkest * len(means), 9))
            return float(ordered[count]) if count < len(means) else math.inf
        assert self.deviations is not None
        median = float(np.median(means))
        return median - self.deviations * _MAD_TO_SIGMA * float(np.median(np.abs(means - median)))


class Foreground(Step):
    """Drop images with too little foreground in a channel, such as fields without cells.

    The foreground of a plane (`quality.foreground`) is the share of its pixels above Otsu's threshold. Images without
    a plane of the channel type cannot be judged and stay; of several such planes the fullest counts.

    Source: Kim et al. keep crops of which at least 1 % is foreground in the DNA channel. They count pixels above 0.7
    times the threshold of the whole image, crop by crop; here whole images are judged, by the threshold itself.

    Args:
        share: Above 0, at most 1; Kim et al. ask for 0.01.
        channel_type: The channel that is looked at.
        studies: The only studies that the step looks at; all where not given.
    """

    name: ClassVar[str] = "foreground"
    needs: ClassVar[Needs] = "quality"

    def __init__(self, share: float = 0.01, channel_type: str = "nucleus", studies: Sequence[str] = ()) -> None:
        super().__init__(studies)
        self.share = check_share(self.name, "share", share)
        self.channel_type = resolve_channel(check_text(self.name, "channel_type", channel_type))

    def keep(self, planes: pd.DataFrame, features: Floats | None, seed: int) -> Mask:
        """Keep the images with enough foreground, and those without the channel."""
        shown = self._shown(planes)
        enough: Mask = np.zeros(len(planes), np.bool_)
        if shown.any():
            enough[shown] = numbers(planes[shown], "quality.foreground", self.name) >= self.share
        return _images_where(planes, enough, "any") | ~_images_where(planes, shown, "any")

    def remark(self, planes: pd.DataFrame) -> str | None:
        """Say how many images lack the channel."""
        lacking = ~_images_where(planes, self._shown(planes), "any")
        if not lacking.any():
            return None
        return (
            f"{self.name}: {lacking.sum()} of {len(lacking)} images have no channel '{self.channel_type}' and were kept"
        )

    def _shown(self, planes: pd.DataFrame) -> Mask:
        return np.asarray(texts(planes, "imaging.channel_type") == self.channel_type, np.bool_)


class _Query(Step):
    """Base of the steps that keep the images whose planes match a query.

    Args:
        keep_where: A query as `morphem.data.query` reads it.
        planes: Whether `all` planes of an image must match, or `any` is enough. An image is never split.
        studies: The only studies that the step looks at; all where not given.
    """

    def __init__(self, keep_where: str, planes: PlaneRule = "all", studies: Sequence[str] = ()) -> None:
        super().__init__(studies)
        self.keep_where = check_text(self.name, "keep_where", keep_where)
        self.planes = check_choice(self.name, "planes", planes, ("any", "all"))

    def keep(self, planes: pd.DataFrame, features: Floats | None, seed: int) -> Mask:
        """Keep the images that match."""
        table = _typed(planes)
        found = table.append_column("row", pa.array(np.arange(len(planes)))).filter(
            compile_query(self.keep_where, table.schema)
        )
        matched: Mask = np.zeros(len(planes), np.bool_)
        matched[found["row"].to_numpy()] = True
        return _images_where(planes, matched, "all" if self.planes == "all" else "any")


class Select(_Query):
    """Keep the images that match a query on their columns, before any pixel is read.

    Args:
        keep_where: For example `microscopy.type == 'confocal' and experiment.plate != 'P7'`. A plane whose label is
            missing matches no comparison with it except `label == None`; in the 22 columns it is `'unknown'`.
        planes: Whether `all` planes of an image must match, or `any` is enough. An image is never split.
        studies: The only studies that the step looks at; all where not given.
    """

    name: ClassVar[str] = "select"
    needs: ClassVar[Needs] = "metadata"

    def __init__(self, keep_where: str, planes: PlaneRule = "all", studies: Sequence[str] = ()) -> None:
        super().__init__(keep_where, planes, studies)
        if _MEASURED.search(keep_where):
            raise ConfigError("select.keep_where uses what is measured on pixels; use 'quality'.")


class Quality(_Query):
    """Keep the images that match a query on the measurements of their planes, and on any other column.

    Args:
        keep_where: For example `quality.saturated < 0.02 and n_cells > 0`; to ask it of one channel alone:
            `imaging.channel_type != 'nucleus' or quality.focus > 0.1`.
        planes: Whether `all` planes of an image must match, or `any` is enough. An image is never split.
        studies: The only studies that the step looks at; all where not given.
    """

    name: ClassVar[str] = "quality"
    needs: ClassVar[Needs] = "quality"

    def __init__(self, keep_where: str, planes: PlaneRule = "all", studies: Sequence[str] = ()) -> None:
        super().__init__(keep_where, planes, studies)
        if not _MEASURED.search(keep_where):
            raise ConfigError(
                "quality.keep_where uses nothing that is measured on pixels (quality.*, n_cells, clip_low, clip_high); "
                "use 'select', which reads no pixel."
            )


def _images_where(planes: pd.DataFrame, flags: Mask, rule: str) -> Mask:
    """Whether any, or all, planes of every image have a flag, (N,)."""
    images = image_numbers(planes)
    counts = np.bincount(images)
    hits = np.bincount(images, weights=flags)
    result: Mask = hits == counts if rule == "all" else hits > 0
    return result


def _typed(planes: pd.DataFrame) -> pa.Table:
    """Return the table as a shard set holds it: whole numbers, measurements, texts; null where a label is missing."""
    columns: dict[str, Any] = {}
    for column in map(str, planes.columns):
        if COLUMNS.get(column) == "int64" or _MEASURED.match(column):
            values = np.asarray(pd.to_numeric(planes[column], errors="coerce"), np.float64)
            columns[column] = pa.array(values, pa.float64(), from_pandas=True)
        elif column in COLUMNS:
            columns[column] = pa.array(texts(planes, column).tolist(), pa.string())
        else:
            labels = [None if is_missing(value) else str(value) for value in planes[column]]
            columns[column] = pa.array(labels, pa.string())
    return pa.table(columns)
