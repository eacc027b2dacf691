"""`morphem ingest`: images to shards."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphem.cli.open_sources import absolute, open_sources, progress_bar, share
from morphem.data.schema import load_aliases, resolve_channel
from morphem.errors import ConfigError
from morphem.ingest.engine import ingest
from morphem.ingest.outcome import KEPT, REFUSED, IngestReport, RefusedError, StudyReport
from morphem.ingest.prepare import Preparation
from morphem.ingest.scaling import parse_clip
from morphem.ingest.settings import IngestSettings

if TYPE_CHECKING:
    from morphem.sources.base import Source

_EXAMPLE = """examples:
  morphem ingest my-study/ --output shards/
  morphem ingest plate1/ plate2/ --output shards/ --dry-run
  morphem ingest plate1/ --output shards/ --channel w1=nucleus --channel w2=actin --workers 8
  morphem ingest images/ --output shards/ --source pattern \\
      --set 'pattern=(?P<well>[A-P]\\d\\d)_s(?P<site>\\d+)_w(?P<channel>\\d)\\.tif'
  morphem ingest my-study/ --output shards/ --cells otsu --recipe curate.yaml --dask tcp://scheduler:8786

A study folder with a metadata.csv has one row per channel plane there. Needed columns: file,
imaging.multi_channel_id (which planes make one image), imaging.channel_type. Others are taken where given. Further
layouts are recognised by themselves; `morphem plugins` lists them under sources.

A run that was killed goes on where it stopped when the same command is given again. The shards are the same, to the
byte, however often that happens and with however many workers.

exit codes: 0 all went well; 1 nothing or not all was written (too many unusable images, see --max-bad); 2 wrong words
on the command line; 130 stopped with Ctrl-C."""


_FINDERS = ("source", "none", "otsu", "adaptive", "cellpose")


def main(argv: list[str]) -> int:
    """Read studies and write a shard set, or with `--dry-run` tell what would be read.

    Args:
        argv: Words after `ingest`.

    Returns:
        0 if every study was written, 1 if some had too many images that cannot be used, 130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    settings = _settings(options)
    sources = _sources(options)
    if options.dry_run:
        return _dry_run(sources)
    refused: RefusedError | None = None
    try:
        with progress_bar({source.study: source.count for source in sources}) as show:
            report = ingest(
                sources, options.output, settings, workers=options.workers, dask=options.dask, progress=show
            )
    except RefusedError as fault:
        refused, report = fault, fault.report
    except KeyboardInterrupt:
        print("morphem: stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    print(summary(report))
    if options.report and any(study.state != KEPT for study in report.studies) and report.n_bytes:
        from morphem.report import write_report

        new = [study for study in report.studies if study.state != KEPT]
        print(f"report: {write_report(Path(options.output), new)}")
    if refused is not None:
        print(f"morphem: error: {refused}", file=sys.stderr)
        return 1
    return 0


def _dry_run(sources: Sequence["Source"]) -> int:
    from morphem.ingest.survey import format_survey, survey

    for source in sources:
        print(format_survey(survey(source)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="morphem ingest",
        description="Turn images into shards: each channel plane is clipped, scaled to 8 bit, and stored as PNG.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "locations", nargs="+", metavar="SOURCE", help="where images are: a folder, a sheet, a zip, or s3://..."
    )
    parser.add_argument(
        "--output", required=True, metavar="SHARDS", help="folder of the shard set; studies are added to it"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be read, and write nothing")
    _add_source(parser.add_argument_group("what is read"))
    _add_images(parser.add_argument_group("what becomes of an image"))
    _add_run(parser.add_argument_group("the run"))
    return parser


def _add_source(group: Any) -> None:
    group.add_argument(
        "--source", metavar="NAME", help="plug-in that reads them (default: the one that knows the layout)"
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        type=_pair,
        metavar="KEY=VALUE",
        help="setting of the source, for example pattern=..., preset=..., study=...",
    )
    group.add_argument(
        "--channel",
        action="append",
        default=[],
        type=_pair,
        metavar="NAME=TYPE",
        help="channel type of a stain's name, for example w1=nucleus",
    )
    group.add_argument("--aliases", metavar="FILE", help="YAML or CSV file of such names")
    group.add_argument("--max-pixels", type=_count, metavar="N", help="refuse planes with more pixels than this")


def _add_images(group: Any) -> None:
    group.add_argument(
        "--clip",
        default="0.1,99.9",
        metavar="LOW,HIGH",
        help="percentiles of a plane that become 0 and 255 (default 0.1,99.9); range:200,4095 for fixed intensities; "
        "'none' keeps 8-bit planes as they are",
    )
    group.add_argument(
        "--bit-depth", type=int, choices=(8, 16), default=8, help="16 keeps intensities exactly (default 8)"
    )
    group.add_argument(
        "--cells",
        default="source",
        metavar="FINDER",
        help="centres of cells: source (what lies beside the images, the default), none, otsu, adaptive, cellpose, a "
        "CSV file, or a folder of label images",
    )
    group.add_argument(
        "--recipe", metavar="FILE", help="YAML file that says which images to keep, for example curate.yaml"
    )
    group.add_argument(
        "--features-from",
        metavar="MODEL",
        help="encoder for recipes that need features (default: a small untrained one)",
    )


def _add_run(group: Any) -> None:
    group.add_argument("--workers", type=_count, metavar="N", help="processes on this machine (default: one per core)")
    group.add_argument("--dask", metavar="ADDRESS", help="Dask scheduler whose workers do it instead")
    group.add_argument(
        "--max-bad",
        type=share,
        default=0.01,
        metavar="SHARE",
        help="a study with more unusable images than this is not written (default 1%%)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace studies that SHARDS has already")
    group.add_argument(
        "--restart", action="store_true", help="throw away what a run with other settings left half-done"
    )
    group.add_argument("--no-report", dest="report", action="store_false", help="write no report.html")


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE")
    return key, value


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def _settings(options: argparse.Namespace) -> IngestSettings:
    from morphem.cells import cells_from_option

    recipe = None
    if options.recipe is not None:
        from morphem.curation.recipe import Recipe

        recipe = Recipe.read(_config(options.recipe))
    if options.dask is not None and options.workers is not None:
        raise ConfigError("--workers counts processes on this machine, which --dask does not use; give one of the two.")
    options.workers = options.workers or (1 if options.dask else len(os.sched_getaffinity(0)))
    return IngestSettings(
        preparation=Preparation(clip=parse_clip(options.clip), bit_depth=options.bit_depth),
        cells=cells_from_option(absolute(options.cells) if options.cells not in _FINDERS else options.cells),
        recipe=recipe,
        features_from=options.features_from,
        pictures=options.report,
        max_bad=options.max_bad,
        overwrite=options.overwrite,
        restart=options.restart,
    )


def _config(name: str) -> str:
    """Path of a recipe: in the working directory, else among those that the package ships."""
    from morphem.cli.config_files import find_config

    return str(find_config(name))


def _sources(options: argparse.Namespace) -> list["Source"]:
    """Open every location."""
    aliases = load_aliases(options.aliases) if options.aliases else {}
    aliases |= {name: resolve_channel(kind) for name, kind in options.channel}
    return open_sources(options.locations, options.source, dict(options.set), aliases, options.max_pixels)


def summary(report: IngestReport) -> str:
    """Return what was written and what was unknown, as text."""
    studies = report.studies
    planes, images = sum(study.planes for study in studies), sum(study.images for study in studies)
    size = f"{report.n_bytes / 2**20:.1f} MiB of shards in all"
    lines = [f"{report.root}: wrote {_number(images, 'image')}, {_number(planes, 'plane')}; {size}"]
    for study in studies:
        lines += _study_lines(study)
    if report.n_bytes:
        lines.append(f"next: morphem fit --config dino_boc.yaml --data.root {report.root}")
    return "\n".join(lines)


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _study_lines(study: StudyReport) -> list[str]:
    left_out = [f"    LEFT OUT {image_id}: {why}" for image_id, why in study.failures]
    if study.state == KEPT:
        return [f"  {study.study}: is in the set already, made with the same settings; --overwrite makes it again"]
    if study.state == REFUSED:
        return [f"  {study.study}: NOT WRITTEN", *left_out]
    types = ", ".join(f"{name} {count}" for name, count in study.channel_types.items())
    cells = f", {_number(study.cells, 'cell')}" if study.cells else ""
    lines = [f"  {study.study}: {_number(study.images, 'image')}, {_number(study.planes, 'plane')} ({types}){cells}"]
    if study.labels:
        lines.append(f"    labels: {', '.join(study.labels)}")
    lines += [f"    {row['step']}: {row['before']} -> {_number(row['after'], 'image')}" for row in study.curation]
    if study.flat:
        lines.append(f"    {_number(study.flat, 'plane')} without signal between the clip limits, stored as zeros")
    lines += [f"    {remark}: {_number(count, 'image')}" for remark, count in study.remarks.items()]
    if study.unknown:
        everywhere = _listed(study.unknown, study.planes)
        lines.append(f"    unknown: {everywhere}")
    if study.unrecognised:
        names = _listed(study.unrecognised, 0)
        wells_only = all(name.startswith("well ") for name in study.unrecognised)  # as sources call them
        remedy = "" if wells_only else "; say what stains are with --channel NAME=TYPE"
        lines.append(f"    NOT RECOGNISED: {names}{remedy}")
    lines += [f"    LOOK AT {sentence}" for _, _, sentence in study.lookalikes]
    return lines + left_out


def _listed(counts: Mapping[str, int], everywhere: int) -> str:
    return ", ".join(name if count == everywhere else f"{name} ({count})" for name, count in counts.items())
