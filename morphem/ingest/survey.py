"""What `morphem ingest --dry-run` shows of a study: the parsed table, what is missing, and what its files say.

Only names, tables and the headers of some files are read; nothing is decoded and nothing is written.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from morphem.data.schema import COLUMNS
from morphem.errors import MorphemError
from morphem.ingest.gaps import PlateGaps, find_gaps, is_unknown
from morphem.readers.planes import FileHeader, PlaneReader
from morphem.sources.base import Source
from morphem.sources.table import PLACE_COLUMNS, TableSource

MAX_SHOWN = 12
"""Lines of a list that the text shows; the rest is counted."""
_IMAGE, _TYPE, _SITE = "imaging.multi_channel_id", "imaging.channel_type", "microscopy.fov"
_SHOWN_COLUMNS = (
    _IMAGE, "experiment.plate", "experiment.well", _SITE, "geometry.z_slice", "geometry.timepoint", "channel_name",
    _TYPE, "file",
)  # fmt: skip
_ONLY_IF_DIFFERENT = ("geometry.z_slice", "geometry.timepoint")
_WIDEST = 32
_N_ROWS = 6


@dataclass(frozen=True)
class Survey:
    """What is known of a study before its pixels are read.

    Attributes:
        study: Its name.
        images: Images that would be read.
        planes: Their channel planes.
        rows: First rows of the plane table, with the columns that have values.
        columns: Columns of the table that have values.
        unknown: Columns of the schema without any value.
        labels: Label columns.
        channels: Planes of each channel: its type, the source's name, and how many.
        plates: Gaps of each plate.
        n_files: Files that the table names; 0 where pixels are not in files.
        n_bytes: Their size.
        n_headers: Files whose header was read.
        sizes: Image sizes (width x height) and the number of files.
        dtypes: Pixel types and the number of files.
        pixel_um: Pixel sizes in micrometres and the number of files (or planes, where the table tells).
        unrecognised: Names of stains and wells that were not recognised, and the number of planes.
        problems: Images, rows or files that cannot be used, and why.
        remarks: What else was odd, and how often.
    """

    study: str
    images: int
    planes: int
    rows: pd.DataFrame
    columns: list[str]
    unknown: list[str]
    labels: list[str]
    channels: list[tuple[str, str, int]]
    plates: list[PlateGaps]
    n_files: int = 0
    n_bytes: int = 0
    n_headers: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    pixel_um: Counter[str] = field(default_factory=Counter)
    unrecognised: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)


def survey(source: Source, max_headers: int = 200) -> Survey:
    """Look at a study without reading pixels.

    Args:
        source: The study.
        max_headers: At most this many files are opened, evenly spread over the study; 0 or more.
    """
    table = source.table()
    known = [column for column in table.columns if not table[column].map(is_unknown).all()]
    own = {*COLUMNS, *PLACE_COLUMNS}
    result = Survey(
        study=source.study,
        images=table[_IMAGE].nunique(),
        planes=len(table),
        rows=_first_rows(table, known),
        columns=known,
        unknown=[column for column in COLUMNS if column not in known and not column.startswith("geometry.")],
        labels=[column for column in known if column not in own],
        channels=_channels(table),
        plates=list(find_gaps(table)),
        unrecognised=Counter(source.unrecognised),
        problems=list(source.problems),
        remarks=Counter(source.remarks),
    )
    if isinstance(source, TableSource) and type(source).read_row is TableSource.read_row:
        return _with_headers(result, source, table, max_headers)
    return _with_table_facts(result, table)


def _first_rows(table: pd.DataFrame, known: Sequence[str]) -> pd.DataFrame:
    columns = [column for column in _SHOWN_COLUMNS if column in known]
    columns = [name for name in columns if name not in _ONLY_IF_DIFFERENT or table[name].nunique() > 1]
    return table[columns].head(_N_ROWS)


def _channels(table: pd.DataFrame) -> list[tuple[str, str, int]]:
    names = table["channel_name"] if "channel_name" in table else pd.Series("", index=table.index)
    counts = Counter(zip(table[_TYPE], names, strict=True))
    return [(str(kind), str(name), count) for (kind, name), count in counts.items()]


def _with_table_facts(result: Survey, table: pd.DataFrame) -> Survey:
    """Count sizes and types that the table itself tells, where pixels are not in files."""
    images = table.drop_duplicates(_IMAGE)
    if {"geometry.width", "geometry.height"} <= set(result.columns):
        result.sizes.update(
            f"{w} x {h}" for w, h in zip(images["geometry.width"], images["geometry.height"], strict=True)
        )
    for column, counter in (("dtype", result.dtypes), ("pixel_um", result.pixel_um)):
        if column in result.columns:
            counter.update(images[column])
    return result


def _with_headers(result: Survey, source: TableSource, table: pd.DataFrame, max_headers: int) -> Survey:
    """Add what the files of a study say: whether they are there, and the headers of some."""
    if source.files is None or "file" not in table:
        return _with_table_facts(result, table)
    files = source.files
    users = dict(zip(table["file"][::-1], table[::-1].to_dict("records"), strict=True))
    names = list(dict.fromkeys(table["file"]))
    there = [name for name in names if files.has(name)]
    absent = [name for name in names if not files.has(name)]
    result.problems.extend(
        (name, f"'{name}' is not in '{files.location}'; restore it or correct the table.") for name in absent
    )
    n_headers = 0
    with PlaneReader(files) as reader:
        for name in spread(there, max_headers):
            try:
                header = reader.header(name)
            except MorphemError as fault:
                result.problems.append((name, str(fault)))
                continue
            n_headers += 1
            result.sizes[_size(header, users[name])] += 1
            result.dtypes[header.dtype] += 1
            if header.pixel_um is not None:
                result.pixel_um[f"{header.pixel_um:.4g}"] += 1
    if "pixel_um" in result.columns and not result.pixel_um:
        result.pixel_um.update(table["pixel_um"])
    n_bytes = sum(files.size(name) for name in there)
    return replace(result, n_files=len(names), n_bytes=n_bytes, n_headers=n_headers)


def spread(names: Sequence[str], count: int) -> list[str]:
    """Return some of the names, the first and the last among them, evenly spread.

    Args:
        names: In order.
        count: How many at most; 0 or more.
    """
    if len(names) <= count:
        return list(names)
    return [names[int(place)] for place in np.linspace(0, len(names) - 1, count)] if count else []


def _size(header: FileHeader, row: Mapping[Hashable, str]) -> str:
    """Width x height of one plane of a file."""
    length = dict(zip(header.axes, header.shape, strict=True))
    width, height = length.get("X", 0), length.get("Y", 0)
    if row.get("plane_axis") == "tape" and str(row.get("plane_count", "")).isdecimal():
        width //= max(1, int(row["plane_count"]))
    return f"{width} x {height}"


def format_survey(found: Survey) -> str:
    """Return what a survey found as text for the terminal.

    Args:
        found: As `survey` gives it.
    """
    files = f" in {_count(found.n_files, 'file')}, {_bytes(found.n_bytes)}" if found.n_files else ""
    lines = [f"{found.study}: {_count(found.images, 'image')}, {_count(found.planes, 'plane')}{files}"]
    if found.problems:
        lines += _section(f"CANNOT BE USED: {len(found.problems):,}", (f"{a}: {b}" for a, b in found.problems))
    if found.unrecognised:
        names = (f"{name}: {_count(n, 'plane')}" for name, n in found.unrecognised.most_common())
        lines += _section("NOT RECOGNISED (--channel NAME=TYPE says what a stain shows)", names)
    lines += _section("first rows", _aligned(_shown_rows(found.rows)))
    lines += _section("channels", _aligned([(kind, name, f"{n:,}") for kind, name, n in found.channels], numbers=(2,)))
    lines += _plate_lines(found.plates)
    if found.n_headers:
        lines.append(f"  pixels, as {found.n_headers:,} of {_count(found.n_files, 'file')} say:")
    elif found.sizes or found.dtypes:
        lines.append("  pixels, as the table says:")
    counters = {"width x height": found.sizes, "type": found.dtypes, "pixel size, µm": found.pixel_um}
    lines += [f"    {name}: {_counted(counter)}" for name, counter in counters.items() if counter]
    if not found.pixel_um:
        lines.append("    pixel size: not known")
    for name, values in (("labels", found.labels), ("without a value", found.unknown)):
        lines += [f"  {name}: {', '.join(values)}"] if values else []
    lines += [f"  {remark}: {n:,}" for remark, n in found.remarks.most_common()]
    return "\n".join(lines)


def _section(title: str, lines: Iterable[str]) -> list[str]:
    shown = [f"    {line}" for line in lines]
    more = [f"    and {len(shown) - MAX_SHOWN:,} more"] if len(shown) > MAX_SHOWN else []
    return [f"  {title}:", *shown[:MAX_SHOWN], *more] if shown else []


def _shown_rows(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    head = tuple({_IMAGE: "image", _SITE: "site"}.get(name, name.rpartition(".")[2]) for name in rows.columns)
    return [head, *(tuple(_short(str(value)) for value in row) for row in rows.itertuples(index=False))]


def _short(text: str) -> str:
    """The start and the end of a long text: names differ there."""
    if len(text) <= _WIDEST:
        return text
    head = (_WIDEST - 1) // 2
    return f"{text[:head]}…{text[len(text) - (_WIDEST - 1 - head) :]}"


def _aligned(rows: Sequence[tuple[str, ...]], numbers: Sequence[int] = ()) -> list[str]:
    """Rows with their columns under each other; columns of numbers stand on the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))] if rows else []
    padded = (
        (text.rjust(width) if k in numbers else text.ljust(width))
        for row in rows
        for k, (text, width) in enumerate(zip(row, widths, strict=True))
    )
    return ["  ".join(next(padded) for _ in row).rstrip() for row in rows]


def _plate_lines(plates: Sequence[PlateGaps]) -> list[str]:
    lines = []
    for plate in plates[:MAX_SHOWN]:
        grid = f"{_count(plate.wells, 'well')} x {_count(plate.sites, 'site')} x {_count(plate.channels, 'channel')}"
        n_missing = plate.expected - plate.planes
        state = f"{n_missing:,} of {plate.expected:,} planes missing" if n_missing else "complete"
        lines.append(f"  plate {plate.plate}: {grid}, {state}")
        gaps = [(well, _gap(places)) for well, places in plate.missing.items()]
        lines += [f"    {well}: {text}" for well, text in gaps[:MAX_SHOWN]]
        lines += [f"    and {len(gaps) - MAX_SHOWN:,} more wells"] if len(gaps) > MAX_SHOWN else []
    return lines + ([f"  and {len(plates) - MAX_SHOWN:,} more plates"] if len(plates) > MAX_SHOWN else [])


def _gap(places: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    """Sites of a well with what they lack; sites that lack the same stand together."""
    by_channels: dict[tuple[str, ...], list[str]] = {}
    for site, channels in places:
        by_channels.setdefault(channels, []).append(site)
    parts = []
    for channels, sites in by_channels.items():
        what = f"without {', '.join(channels)}" if channels else "missing"
        named = "" if sites == [""] else f"site{'' if len(sites) == 1 else 's'} {', '.join(sites)} "
        parts.append(f"{named}{what}")
    return "; ".join(parts)


def _counted(counter: Mapping[str, int]) -> str:
    shown = sorted(counter.items(), key=lambda item: -item[1])
    if len(shown) == 1:
        return shown[0][0]
    more = f" and {len(shown) - MAX_SHOWN:,} more" if len(shown) > MAX_SHOWN else ""
    return ", ".join(f"{value} ({n:,})" for value, n in shown[:MAX_SHOWN]) + more


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _bytes(number: int) -> str:
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.1f} MiB"
