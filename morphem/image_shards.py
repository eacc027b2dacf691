"""Images to temporary shards, so that `embed` has one path to the pixels whatever they lie in.

All that can be wrong with names and panels of channels is looked for before the first pixel is read.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from morphem.data.schema import UNKNOWN
from morphem.errors import ChannelError, ConfigError, DataError, unknown_name
from morphem.features import channel_labels, check_one_panel

if TYPE_CHECKING:
    from morphem.ingest.outcome import StudyReport
    from morphem.ingest.settings import IngestSettings
    from morphem.sources.base import Source

SHARDS = "shards"
_RECORD = "images.json"
_SHOWN = 8


def check_names(sources: Sequence["Source"], named: Mapping[str, str], in_order: Sequence[str]) -> None:
    """Check that names of channels that a user gave have an effect.

    Args:
        sources: Opened with these names.
        named: Names of stains in the files, each with its channel type.
        in_order: Names given to files that do not say.

    Raises:
        ChannelError: If no file has a channel of one of the names.
    """
    found = {str(name) for source in sources for name in _column(source, "channel_name")}
    for name in named:
        if name.casefold() not in {other.casefold() for other in found}:
            raise ChannelError(f"--channels {name}=...: {unknown_name('channel', name, sorted(found))}")
    unused = [name for name in in_order if name not in found]
    if unused:
        raise ChannelError(
            f"--channels names '{unused[0]}', but the files say themselves what their channels are: "
            f"{', '.join(sorted(found)[:_SHOWN])}; say what these are with --channels NAME=TYPE, or leave it out."
        )


def check_known(sources: Sequence["Source"]) -> None:
    """Check that it is known what every channel shows.

    Args:
        sources: The images.

    Raises:
        ChannelError: If a channel was not recognised, with its name and the remedy.
    """
    unknown: Counter[str] = Counter()
    for source in sources:
        table = source.table()
        if "channel_name" in table.columns:
            types = _column(source, "imaging.channel_type")
            unknown.update(n for n, t in zip(_column(source, "channel_name"), types, strict=True) if t == UNKNOWN)
    if unknown:
        names = ", ".join(f"'{name}' ({count} planes)" for name, count in unknown.most_common(_SHOWN))
        example = next(iter(unknown))
        told = f'"{example}=nucleus"' if " " in example else f"{example}=nucleus"
        raise ChannelError(
            f"it is not known what these channels show: {names}; say it with --channels, for example --channels {told} "
            "(a type may be 'other'), or select the planes that are known with --query."
        )


def panels_of(sources: Sequence["Source"]) -> dict[str, tuple[str, ...]]:
    """Return the channel types of every image, in panel order, by the image's name; empty where they are not known.

    Args:
        sources: The images.
    """
    panels: dict[str, list[str]] = {}
    for source in sources:
        table = source.table()
        if "channel_name" not in table.columns:
            continue
        for image, kind in zip(
            _column(source, "imaging.multi_channel_id"), _column(source, "imaging.channel_type"), strict=True
        ):
            panels.setdefault(f"{source.study}: {image}", []).append(kind)
    return {name: tuple(panel) for name, panel in panels.items()}


def check_panels(panels: Mapping[str, Sequence[str]]) -> None:
    """Check that all images have the same channels, as columns side by side need.

    Args:
        panels: As `panels_of` gives them.

    Raises:
        DataError: If they differ.
    """
    check_one_panel(channel_labels(panel) for panel in panels.values())


def check_counts(sources: Sequence["Source"], kinds: Sequence[str]) -> None:
    """Look at the first image of each study before all are read, where an encoder needs 16-bit intensities.

    Args:
        sources: The images.
        kinds: Of the encoders' pixels.

    Raises:
        DataError: If its pixels are 8-bit numbers or floats.
    """
    for source in sources if "counts" in kinds else ():
        image = source.load(source.image_ids()[0])
        kind = image.planes[0].dtype
        if kind.itemsize == 1 or kind.kind == "f":
            depth = " --bit-depth 8" if kind.kind == "f" else ""
            raise DataError(
                f"image '{image.image_id}' of '{source.study}' has {kind} pixels, and an encoder was made for 16-bit "
                f"intensities; bring them to its full range with --pixels stretched{depth}."
            )


def _column(source: "Source", name: str) -> list[str]:
    table = source.table()
    return [str(value) for value in table[name]] if name in table.columns else []


def make_shards(
    sources: Sequence["Source"],
    folder: Path,
    settings: "IngestSettings",
    *,
    overwrite: bool = False,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Path, list["StudyReport"]]:
    """Write images into shards in a folder of parts; what is there from an earlier run of the same job is kept.

    Args:
        sources: The images.
        folder: Of the parts of the job.
        settings: How planes are stored.
        overwrite: Throw away what another job has left.
        workers: Processes, 1 or more.
        progress: Called with study, images done, and images in all.

    Returns:
        The shard set, and what became of every study.

    Raises:
        ConfigError: If the folder holds the images of another job.
        DataError: If an image cannot be used, more than `settings` allows.
    """
    from morphem.ingest.engine import ingest
    from morphem.ingest.settings import fingerprint, settings_of_merge

    described = [fingerprint(source, source.table(), settings) | settings_of_merge(settings) for source in sources]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    root, record = folder / SHARDS, folder / _RECORD
    if _digest_in(record) not in (None, digest):
        if not overwrite:
            raise ConfigError(
                f"{folder} holds images of another job (other files, channels or settings); repeat that job's command "
                "to finish it, or drop its parts (--overwrite)."
            )
        shutil.rmtree(root, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"digest": digest}))
    except OSError as fault:
        raise DataError(f"cannot write {folder} ({fault}); free some space or choose another output.") from fault
    report = ingest(sources, root, settings, workers=workers, progress=progress)
    return root, list(report.studies)


def _digest_in(record: Path) -> str | None:
    try:
        told: dict[str, Any] = json.loads(record.read_text())
    except (OSError, ValueError):
        return None
    digest: str | None = told.get("digest")
    return digest


def bit_depth_for(kinds: Sequence[str]) -> Literal[8, 16]:
    """Return the bit depth at which shards hold what some encoders need.

    Args:
        kinds: Of their pixels, as in `morphem.data.pixel_kinds`.
    """
    return 8 if set(kinds) <= {"levels"} else 16
