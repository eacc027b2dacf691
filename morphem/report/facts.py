"""What a report says of a study, read from the finished set: counts, distributions, values per well, odd planes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from morphem.data import layout
from morphem.data.schema import UNKNOWN
from morphem.data.shards import ShardSet
from morphem.ingest.outcome import StudyReport
from morphem.report import contact
from morphem.report.charts import Values
from morphem.report.contact import ContactSheet
from morphem.report.plates import plate_size, well_place

PLANE_MEASURES = {
    "quality.mean": ("Mean intensity", "mean of a plane, in the source's units", 1),
    "clip_low": ("Lower clip limit", "intensity stored as 0, in the source's units", 1),
    "clip_high": ("Upper clip limit", "intensity stored as the top level, source's units", 1),
    "quality.focus": ("Focus", "larger is sharper (0 to 1)", 1),
    "quality.saturated": ("Saturation", "% of a plane's pixels at its largest intensity", 100),
    "quality.empty": ("Empty area", "% of a plane's tiles without structure", 100),
    "quality.foreground": ("Foreground", "% of a plane's pixels above Otsu's threshold", 100),
    "quality.illumination": ("Uneven light", "% of the clip range that the background varies by", 100),
}
"""Measured columns of planes that are drawn as histograms: title, what the axis means, and the factor to its unit."""

ABOUT = {
    "biology.organism": "organism",
    "biology.cell_line": "cell line",
    "biology.cell_type": "cell type",
    "microscopy.type": "microscopy",
    "microscopy.magnification": "magnification",
    "experiment.control": "control",
    "geometry.z_slice": "z slice",
    "geometry.timepoint": "time point",
}
"""Columns whose values are listed, with what they are called."""

SATURATED = 0.05
"""From this share of pixels at the largest intensity on a plane is named as saturated."""
MAX_CHANNELS = 12
_CELLS = ["key", "experiment.plate", "experiment.well", "n_cells", "cells_offset"]


@dataclass(frozen=True)
class Histogram:
    """Values of some channels over one axis."""

    title: str
    unit: str
    rows: dict[str, Values]


@dataclass(frozen=True)
class WellValues:
    """One value per well: of one measure, on each plate.

    Attributes:
        title: For example `Mean intensity: nucleus`.
        unit: What a value means.
        plates: For each plate the value of each of its wells.
    """

    title: str
    unit: str
    plates: dict[str, dict[str, float]]


@dataclass(frozen=True)
class StudyFacts:
    """All that a page says of one study.

    Attributes:
        report: What became of it when it was ingested.
        images: Images in the set.
        planes: Planes in the set.
        cells: Cells in the set; None where nobody looked for cells.
        channels: Planes of each channel.
        channel_types: Planes of each channel type.
        plates: For each plate: images, wells, and cells as above.
        about: Metadata by name, with their values and the number of images of each, the commonest first.
        histograms: Distributions.
        wells: Values per well; empty where wells are not known.
        plate_sizes: Wells of each plate that can be drawn.
        odd: Sentences with the names that they are about.
        sheet: Small pictures.
        notes: What could not be shown, and why.
        scaling: How the brightness of the small pictures came about.
    """

    report: StudyReport
    images: int = 0
    planes: int = 0
    cells: int | None = None
    channels: dict[str, int] = field(default_factory=dict)
    channel_types: dict[str, int] = field(default_factory=dict)
    plates: dict[str, tuple[int, int, int | None]] = field(default_factory=dict)
    about: dict[str, dict[str, int]] = field(default_factory=dict)
    histograms: list[Histogram] = field(default_factory=list)
    wells: list[WellValues] = field(default_factory=list)
    plate_sizes: dict[str, int] = field(default_factory=dict)
    odd: list[tuple[str, list[str]]] = field(default_factory=list)
    sheet: ContactSheet = field(default_factory=ContactSheet)
    notes: list[str] = field(default_factory=list)
    scaling: str = ""

    @property
    def study(self) -> str:
        """Name of the study."""
        return self.report.study


def study_facts(shards: ShardSet, report: StudyReport, n_pictures: int) -> StudyFacts:
    """Read the planes of one study and gather what the page shows.

    Args:
        shards: The finished set; it holds the study.
        report: What became of the study.
        n_pictures: Most pictures on its contact sheet, 2 to 24.

    Raises:
        DataError: If the set is damaged.
    """
    planes = _planes(shards, report.study)
    images = planes.drop_duplicates("key")
    wells = images[images["experiment.well"].map(well_place).notna()]
    sizes = _plate_sizes(wells)
    histograms = list(_histograms(planes, images))
    return StudyFacts(
        report=report,
        images=len(images),
        planes=len(planes),
        cells=_n_cells(images),
        channels=_counted(planes["channel"]),
        channel_types=_counted(planes["imaging.channel_type"]),
        plates={
            str(plate): (len(rows), rows["experiment.well"].nunique(), _n_cells(rows))
            for plate, rows in images.groupby("experiment.plate", sort=True)
        },
        about=_about(images),
        histograms=histograms,
        wells=list(_well_values(planes, wells, sizes)),
        plate_sizes=sizes,
        odd=list(_odd(planes, images)),
        sheet=contact.contact_sheet(shards.reader(), planes, report.study, n_pictures),
        notes=list(_notes(planes, images, sizes)),
        scaling=_scaling(planes),
    )


def _planes(shards: ShardSet, study: str) -> pd.DataFrame:
    """Rows of one study, with a name for each channel; what was not measured is NaN."""
    wanted = [*contact.COLUMNS, *ABOUT, *_CELLS, "storage.path", "clip_low", "clip_high", *layout.QUALITY_COLUMNS]
    columns = [*dict.fromkeys(wanted), *(label for label in shards.labels if label == "pixel_um")]
    planes: pd.DataFrame = shards.table(columns, f"experiment.study == {study!r}").to_pandas()
    for name in layout.QUALITY_COLUMNS:
        planes[name] = planes[name].astype(np.float64)
    planes["channel"] = contact.channel_names(planes)
    return planes


def _counted(values: "pd.Series[str]") -> dict[str, int]:
    """Number of each value, the commonest first, equal numbers in order of appearance."""
    counts = values.value_counts(sort=False)
    return {str(value): int(n) for value, n in sorted(counts.items(), key=lambda item: -item[1])}


def _about(images: pd.DataFrame) -> dict[str, dict[str, int]]:
    sizes = images["geometry.width"].astype(str) + " × " + images["geometry.height"].astype(str)
    counted = {"image size (width × height)": _counted(sizes)}
    if "pixel_um" in images:
        counted["pixel size (µm)"] = _counted(images["pixel_um"].fillna(UNKNOWN))
    return {**{called: _counted(images[name]) for name, called in ABOUT.items()}, **counted}


def _looked_for_cells(images: pd.DataFrame) -> pd.DataFrame:
    """The images in which somebody looked for cells, whether there were any or not."""
    return images[images["cells_offset"] >= 0]


def _n_cells(images: pd.DataFrame) -> int | None:
    counted = _looked_for_cells(images)
    return int(counted["n_cells"].sum()) if len(counted) else None


def _histograms(planes: pd.DataFrame, images: pd.DataFrame) -> Iterator[Histogram]:
    counted = _looked_for_cells(images)
    if len(counted):
        cells = counted["n_cells"].to_numpy(np.float64)
        yield Histogram("Cells", "cells per image", {"all images": cells})
    common = planes["channel"].value_counts().index[:MAX_CHANNELS]
    shown = [name for name in planes["channel"].drop_duplicates() if name in set(common)]
    groups = dict(tuple(planes.groupby("channel", sort=False)))
    scaled = not (planes["clip_low"].eq(0) & planes["clip_high"].eq(255)).all()
    for column, (title, unit, factor) in PLANE_MEASURES.items():
        if column.startswith("clip") and not scaled:
            continue
        rows = {name: factor * groups[name][column].to_numpy(np.float64) for name in shown}
        rows = {name: values[np.isfinite(values)] for name, values in rows.items()}
        rows = {name: values for name, values in rows.items() if values.size}
        if rows:
            yield Histogram(title, unit, rows)


def _plate_sizes(wells: pd.DataFrame) -> dict[str, int]:
    """Size of each plate with at least two wells that has wells like A01."""
    found = {}
    for plate, rows in wells.groupby("experiment.plate", sort=True):
        names = rows["experiment.well"].unique()
        size = plate_size(names)
        if size is not None and len(names) > 1:
            found[str(plate)] = size
    return found


def _well_values(planes: pd.DataFrame, wells: pd.DataFrame, sizes: dict[str, int]) -> Iterator[WellValues]:
    counted = _looked_for_cells(wells)
    if len(counted) and (plates := _means(counted, "n_cells", sizes)):
        yield WellValues("Cells", "cells per image", plates)
    unit = "mean intensity, source's units"
    for channel in planes["channel"].drop_duplicates().head(MAX_CHANNELS):
        rows = planes[(planes["channel"] == channel) & np.isfinite(planes["quality.mean"])]
        if plates := _means(rows, "quality.mean", sizes):
            yield WellValues(f"Mean intensity: {channel}", unit, plates)


def _means(rows: pd.DataFrame, column: str, sizes: dict[str, int]) -> dict[str, dict[str, float]]:
    """For each plate the mean of a column in each of its wells."""
    rows = rows[rows["experiment.plate"].isin(list(sizes)) & rows["experiment.well"].map(well_place).notna()]
    means = rows.groupby(["experiment.plate", "experiment.well"])[column].mean()
    return {
        str(plate): {str(well): float(value) for well, value in values.droplevel(0).items()}
        for plate, values in means.groupby(level=0)
    }


def _odd(planes: pd.DataFrame, images: pd.DataFrame) -> Iterator[tuple[str, list[str]]]:
    flat = planes[planes["quality.flat"] > 0]
    if len(flat):
        yield f"{_count(len(flat), 'plane')} without signal between the clip limits, stored as zeros", _files(flat)
    bright = planes[(planes["quality.saturated"] >= SATURATED) & ~(planes["quality.flat"] > 0)]
    if len(bright):
        share = f"{SATURATED:.0%} or more of the pixels at the largest intensity (saturated)"
        yield f"{_count(len(bright), 'plane')} with {share}", _files(bright)
    counted = _looked_for_cells(images)
    empty = counted[counted["n_cells"] == 0]
    if len(empty):
        names = empty["imaging.multi_channel_id"].tolist()
        yield f"{_count(len(empty), 'image')} in which no cell was found", names
    yield from _uneven_wells(images)


def _uneven_wells(images: pd.DataFrame) -> Iterator[tuple[str, list[str]]]:
    """Wells that have fewer images than most wells of their plate."""
    short = []
    for plate, rows in images[images["experiment.well"] != UNKNOWN].groupby("experiment.plate", sort=True):
        counts = rows["experiment.well"].value_counts(sort=False)
        usual = int(counts.mode().max())
        short += [f"{plate} · {well}: {n} of {usual}" for well, n in counts.items() if n < usual]
    if short:
        yield f"{_count(len(short), 'well')} with fewer images than most wells of the plate", short


def _files(planes: pd.DataFrame) -> list[str]:
    """The file of each plane, or its image where the file is not known, and the channel."""
    names = planes["storage.path"].where(planes["storage.path"] != UNKNOWN, planes["imaging.multi_channel_id"])
    return [f"{name} ({channel})" for name, channel in zip(names, planes["channel"], strict=True)]


def _notes(planes: pd.DataFrame, images: pd.DataFrame, sizes: dict[str, int]) -> Iterator[str]:
    if not np.isfinite(planes["quality.mean"]).any():
        yield (
            "Intensity, focus and the other quality columns were not measured when this study was ingested, so their "
            "histograms and plate maps are left out; ingest it again to have them."
        )
    n_channels = planes["channel"].nunique()
    if n_channels > MAX_CHANNELS:
        yield f"Histograms show the {MAX_CHANNELS} commonest of {n_channels} channels; metadata.parquet has all."
    if not sizes:
        known = (images["experiment.well"] != UNKNOWN).any()
        why = "fewer than two wells of a plate are known" if known else "the wells of this study are not known"
        yield f"There is no plate map: {why}."


def _scaling(planes: pd.DataFrame) -> str:
    limits = planes[["channel", "clip_low", "clip_high"]].drop_duplicates()
    if limits[["clip_low", "clip_high"]].isna().any(axis=None):
        return "how intensities became these levels is not recorded."
    if limits["channel"].is_unique:
        return "all planes of a channel have the same clip limits, so brightness can be compared between images."
    return "every plane is scaled between its own clip limits, so brightness cannot be compared between images."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def from_the_set(shards: ShardSet, study: str) -> StudyReport:
    """Return the report of a study that was written without one: what its rows tell.

    Args:
        shards: The finished set.
        study: Name of one of its studies.

    Raises:
        DataError: If the set is damaged.
    """
    rows = shards.table(["key", "imaging.channel_type", "n_cells"], f"experiment.study == {study!r}").to_pandas()
    images = rows.drop_duplicates("key")
    report = StudyReport(study, images=len(images), planes=len(rows), cells=int(images["n_cells"].sum()))
    report.channel_types.update(rows["imaging.channel_type"])
    return report


def totals(facts: Sequence[StudyFacts]) -> dict[str, int]:
    """Return images, planes and cells of all studies.

    Args:
        facts: One entry for each study.
    """
    return {name: sum(getattr(study, name) or 0 for study in facts) for name in ("images", "planes", "cells")}
