"""`morphem ingest`: images to shards."""

import argparse
import sys

from tqdm import tqdm

from morphem import registry
from morphem.data.ingest import Clip, IngestReport, StudyReport, ingest

_EXAMPLE = """examples:
  morphem ingest my-study/ --output shards/
  morphem ingest plate1/ plate2/ --output shards/ --clip 0,100

A study folder holds images and a metadata.csv with one row per channel plane. Needed columns: file,
imaging.multi_channel_id (which planes make one image), imaging.channel_type. Others are taken where given."""


def main(argv: list[str]) -> int:
    """Read study folders and write a shard set.

    Args:
        argv: Words after `ingest`.

    Returns:
        0 if every image was written, 1 if some were left out.
    """
    options = _parser().parse_args(argv)
    source_class = registry.get("sources", options.source)
    sources = [source_class(folder) for folder in options.folders]
    with tqdm(total=sum(source.count for source in sources), unit="image", file=sys.stderr) as bar:
        written: dict[str, int] = {}

        def show(study: str, done: int, _: int) -> None:
            bar.set_description(study, refresh=False)
            bar.update(done - written.get(study, 0))
            written[study] = done

        report = ingest(
            sources,
            options.output,
            clip=options.clip,
            overwrite=options.overwrite,
            max_failures=options.max_failures,
            progress=show,
        )
    print(summary(report))
    return 1 if report.n_failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="morphem ingest",
        description="Turn images into shards: each channel plane is clipped, scaled to 8 bit, and stored as PNG.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", metavar="STUDY_FOLDER", help="a folder with images and a metadata.csv")
    parser.add_argument(
        "--output", required=True, metavar="SHARDS", help="folder of the shard set; studies are added to it"
    )
    parser.add_argument(
        "--clip",
        type=_clip,
        default=(0.1, 99.9),
        metavar="LOW,HIGH",
        help="percentiles of a plane that become 0 and 255 (default 0.1,99.9); 'none' keeps 8-bit planes as they are",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace studies that SHARDS has already")
    parser.add_argument(
        "--max-failures",
        type=int,
        default=10,
        metavar="N",
        help="stop a study at N images that cannot be used (default 10)",
    )
    parser.add_argument(
        "--source", default="sheet", metavar="NAME", help="plug-in that reads the folders (default sheet)"
    )
    return parser


def _clip(text: str) -> Clip:
    if text == "none":
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as fault:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not LOW,HIGH (percentiles, for example 0.1,99.9) or none"
        ) from fault
    return low, high


def summary(report: IngestReport) -> str:
    """Return what was written and what was unknown, as text."""
    studies = report.studies
    planes, images = sum(study.planes for study in studies), sum(study.images for study in studies)
    size = f"{report.n_bytes / 2**20:.1f} MiB of shards in all"
    lines = [f"{report.root}: wrote {_count(images, 'image')}, {_count(planes, 'plane')}; {size}"]
    for study in studies:
        lines += _study_lines(study)
    lines.append(f"next: morphem fit --config dino_boc.yaml --data.root {report.root}")
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _study_lines(study: StudyReport) -> list[str]:
    types = ", ".join(f"{name} {count}" for name, count in study.channel_types.items())
    cells = f", {_count(study.cells, 'cell')}" if study.cells else ""
    lines = [f"  {study.study}: {_count(study.images, 'image')}, {_count(study.planes, 'plane')} ({types}){cells}"]
    if study.labels:
        lines.append(f"    labels: {', '.join(study.labels)}")
    if study.flat:
        lines.append(f"    {_count(study.flat, 'plane')} without signal between the clip limits, stored as zeros")
    lines += [f"    {remark}: {_count(count, 'image')}" for remark, count in study.remarks.items()]
    if study.unknown:
        everywhere = ", ".join(
            name if count == study.planes else f"{name} ({count})" for name, count in study.unknown.items()
        )
        lines.append(f"    unknown: {everywhere}")
    lines += [f"    LEFT OUT {image_id}: {why}" for image_id, why in study.failures]
    return lines
