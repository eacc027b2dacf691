"""`morphem embed`: images or shards to a feature table, with any published or trained encoder, on any devices."""

import argparse
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from morphem.errors import ConfigError

if TYPE_CHECKING:
    from morphem.embed_job import EmbedReport
    from morphem.encoder import Encoder
    from morphem.extraction import EmbedSettings
    from morphem.ingest.settings import IngestSettings
    from morphem.sources.base import Source

EPILOG = """\
examples:
  morphem embed --model runs/dino_boc --images plate/ --output features.parquet
  morphem embed --model CaicedoLab/MorphEm --images plate/ --channels w1=nucleus w2=actin \\
      --output wells.parquet --unit cell --crop-size-px 96 --cells otsu --mask zero --aggregate well
  morphem embed --model morphem --model runs/dino_boc --data shards/ --output features.parquet \\
      --query "experiment.study == 'my study'"

Images are read as `morphem ingest` reads them, into OUTPUT.parts, which goes away when the output is whole. A job that
was stopped goes on where it was when the same command is given again. What is left open is done as the encoder's
authors do it; the summary says how. Several models share one pass over the pixels and write OUTPUT with the model's
name in it (features.NAME.parquet); --model NAME=PATH chooses the name.
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    result = argparse.ArgumentParser(
        prog="morphem embed", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add(
        "--model",
        required=True,
        action="append",
        help="run, folder, checkpoint, name of the zoo, or owner/name on the hub; may be given several times",
    )
    add("--revision", help="commit, tag or branch on the hub, of a single model")
    add("--family", help="short name of a single model's family, where its file does not tell")
    add("--fact", action="append", default=[], metavar="NAME=VALUE", help="what its file cannot show, e.g. n_heads=12")
    add("--accept-license", action="store_true", help="accept a licence that restricts use; remembered")
    add("--output", required=True, type=Path, help="features.parquet, or features.h5ad (needs morphem[anndata])")
    add_input(result.add_argument_group("what is read (one of --images and --data)"))
    _add_crops(result.add_argument_group("what is cut out (left open: as the encoder's authors do)"))
    _add_rows(result.add_argument_group("what a row is"))
    _add_run(result.add_argument_group("the run"))
    return result


def add_input(group: Any) -> None:
    """Add the options that say what is read.

    Args:
        group: Of options.
    """
    add = group.add_argument
    add("--images", nargs="+", metavar="PLACE", help="images: TIFF folders, OME-Zarr, a sheet, any layout of ingest")
    add("--data", metavar="SHARDS", help="shards: a folder, an address, or sample://NAME")
    add("--query", help="which channel planes, for example \"microscopy.type != 'fluorescence'\"")
    add(
        "--channels",
        nargs="+",
        metavar="NAME",
        help="what the channels of the images show: NAME=TYPE (w1=nucleus), or types in order where files do not say",
    )
    add("--source", help="plug-in that reads the images (default: the one that knows the layout)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of that source, as for ingest")
    add("--cells", help="centres and outlines of cells: source (default), otsu, adaptive, cellpose, CSV, label images")
    add("--clip", metavar="LOW,HIGH", help="percentiles that become dark and bright (default 0.1,99.9), as for ingest")
    add("--bit-depth", type=int, choices=(8, 16), help="of the stored planes (default: what the encoders need)")
    add("--max-bad", type=float, metavar="SHARE", help="stop if more images than this cannot be used (default 0)")
    add("--image-workers", type=int, metavar="N", help="processes that read images (default: one per core)")


def _add_crops(group: Any) -> None:
    add = group.add_argument
    add("--unit", choices=["tile", "cell", "image"], help="what is embedded at a time")
    add("--tile-size-px", type=int, help="side of a tile in pixels")
    add(
        "--tiling",
        choices=["cover", "grid", "square_grid", "overlap"],
        help="how tiles lie: cover every pixel, drop the remainder, drop it as uniDINO's loop does, overlap",
    )
    add(
        "--skip-empty",
        choices=["none", "zero", "otsu"],
        help="tiles left out: none, blank ones, or those without cells",
    )
    add("--empty-channel", metavar="TYPE", help="channel that decides what is empty (default: the nucleus)")
    add("--crop-size-px", type=int, help="side of a cell's crop in pixels, needed with --unit cell")
    add("--mask", choices=["none", "zero", "background"], help="what is outside of the cell (default: it stays)")
    add(
        "--pixels",
        choices=["levels", "counts", "stretched", "unit"],
        help="levels: 0-255 between the clip limits; counts: 16-bit intensities as they are; stretched: 0-65535 "
        "between the limits; unit: 0-1 between the limits (default: what the encoder was made for)",
    )


def _add_rows(group: Any) -> None:
    add = group.add_argument
    add(
        "--combine", default="concat", choices=["concat", "mean", "none"], help="how channels become rows (%(default)s)"
    )
    add("--aggregate", choices=["cell", "image", "well"], help="average rows; left out: no averaging")
    add(
        "--mean-over",
        default="rows",
        choices=["rows", "images"],
        help="a well is the mean over its tiles or cells, or over the means of its images (default: %(default)s)",
    )


def _add_run(group: Any) -> None:
    add = group.add_argument
    add("--batch-size", type=int, default=64, help="planes at once; no influence on the result (default: %(default)s)")
    add("--num-workers", type=int, default=0, help="processes per device that read shards (default: %(default)s)")
    add("--accelerator", default="auto", help="cpu, cuda, mps or auto (default: %(default)s)")
    add("--devices", type=int, default=1, help="how many, one process each (default: %(default)s)")
    add("--num-nodes", type=int, default=1, help="machines, started by a scheduler or torchrun (default: %(default)s)")
    add("--precision", default="32-true", choices=["32-true", "bf16-mixed", "16-mixed"], help="default: %(default)s")
    add("--overwrite", action="store_true", help="replace an output that exists, and drop parts of another job")
    add("--no-self-check", action="store_true", help="do not compare a few rows with a slow reference at the end")


@dataclass(frozen=True)
class _Model:
    """One of the models of a command.

    Attributes:
        name: In the name of its output.
        place: As `zoo.load` takes it.
        output: Its file.
    """

    name: str
    place: str
    output: Path


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: Words after `embed`.

    Returns:
        0.

    Raises:
        MorphemError: For what the user can put right; the caller prints it.
    """
    options = parser().parse_args(list(argv))
    _check(options)
    models = _models(options)
    # torch and Lightning take seconds to import; --help and mistyped options answer at once
    from morphem import zoo
    from morphem.cli.models import facts_of
    from morphem.embed import run_job
    from morphem.embed_job import EmbedJob, Target, parts_folder, refuse_existing
    from morphem.extraction import Extraction

    for model in models:
        refuse_existing(model.output, options.overwrite)
    fabric = _launched(options)
    begin = time.perf_counter()
    encoders = [
        zoo.load(
            model.place,
            revision=options.revision,
            family=options.family,
            accept_license=options.accept_license,
            **facts_of(options.fact),
        )
        for model in models
    ]
    settings = [_settings(encoder, options) for encoder in encoders]
    folder = parts_folder(options.output)
    root: str | Path = options.data
    notes: list[str] = []
    if options.images:
        root, notes = make_input(options, encoders, settings, folder, fabric)
    runs: list[Extraction] = []
    for encoder, one in zip(encoders, settings, strict=True):
        run = Extraction(
            encoder,
            root,
            one,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            device=fabric.device,
            beside=runs[0] if runs else None,
            told_root=" ".join(options.images) if options.images else None,
        )
        runs.append(run)
    targets = [
        Target(run, model.output, options.aggregate, options.mean_over) for run, model in zip(runs, models, strict=True)
    ]
    reports = run_job(
        EmbedJob(targets, folder),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        barrier=fabric.barrier,
        overwrite=options.overwrite,
        progress=True,
        **({"n_checks": 0} if options.no_self_check else {}),
    )
    if reports is not None:
        print(_summary(reports, models, encoders, settings, options, notes, time.perf_counter() - begin))
    return 0


def check_input(options: argparse.Namespace) -> None:
    """Refuse options of what is read that clash.

    Args:
        options: With those of `add_input`.

    Raises:
        ConfigError: If both or none of images and shards are given, or an option belongs to the other.
    """
    if bool(options.images) == bool(options.data):
        raise ConfigError("give either --images (files of any layout) or --data (shards), one of the two.")
    for name in ("channels", "source", "set", "cells", "clip", "bit_depth", "max_bad", "image_workers"):
        if options.data and getattr(options, name, None):
            raise ConfigError(f"--{name.replace('_', '-')} belongs to --images; shards say it themselves.")


def _check(options: argparse.Namespace) -> None:
    """Refuse words that clash before anything heavy is imported."""
    check_input(options)
    for name in ("revision", "family", "fact"):
        if getattr(options, name) and len(options.model) > 1:
            raise ConfigError(f"--{name} belongs to a single model; convert the others first (morphem models convert).")
    if options.aggregate is not None and options.unit is not None:
        from morphem.aggregation import check_level

        check_level(options.aggregate, options.unit, options.mean_over)
    elif options.aggregate is None and options.mean_over != "rows":
        raise ConfigError(f"--mean-over {options.mean_over} has no effect without --aggregate well.")


def _models(options: argparse.Namespace) -> list[_Model]:
    """Name every model, and the file that it writes."""
    output: Path = options.output
    named: dict[str, str] = {}
    for text in options.model:
        name, _, place = text.rpartition("=") if not os.path.exists(text) else ("", "", text)
        name = name or re.sub(r"[^A-Za-z0-9_-]+", "-", Path(place.rstrip("/")).name).strip("-")
        if name in named or not name:
            raise ConfigError(f"two models are called '{name}'; name them: --model NAME={place}.")
        named[name] = place
    if len(named) == 1:
        return [_Model(name, place, output) for name, place in named.items()]
    return [
        _Model(name, place, output.with_name(f"{output.stem}.{name}{output.suffix}")) for name, place in named.items()
    ]


def _settings(encoder: "Encoder", options: argparse.Namespace) -> "EmbedSettings":
    from morphem.aggregation import check_level
    from morphem.data.schema import resolve_channel
    from morphem.embed_recipe import settings_for

    settings = settings_for(
        encoder,
        unit=options.unit,
        tile_size_px=options.tile_size_px,
        crop_size_px=options.crop_size_px,
        tiling=options.tiling,
        mask=options.mask or "none",
        skip_empty=options.skip_empty,
        empty_channel=None if options.empty_channel is None else resolve_channel(options.empty_channel),
        combine=options.combine,
        query=options.query,
        precision=options.precision,
        pixels=options.pixels,
    )
    if options.aggregate is not None:
        check_level(options.aggregate, settings.unit, options.mean_over)
    return settings


class Launched:
    """One process, where no other was started."""

    global_rank = 0

    def barrier(self) -> None:
        """Wait for nobody."""


def make_input(
    options: argparse.Namespace,
    encoders: "Sequence[Encoder]",
    settings: "Sequence[EmbedSettings]",
    folder: Path,
    fabric: Any,
    choose: "Callable[[Sequence[Source]], list[Source]] | None" = None,
) -> tuple[Path, list[str]]:
    """Read the images into shards on rank 0, after all that can be wrong with their channels was looked for.

    Args:
        options: With those of `add_input`.
        encoders: That will see the images.
        settings: Of each encoder.
        folder: Of the parts.
        fabric: Has `global_rank` and `barrier`.
        choose: Picks the images that are wanted; all where not given.

    Returns:
        The shards, and what the summary should say about the images.

    Raises:
        ChannelError: If a channel is unknown, or named where the files say it themselves.
        DataError: If images cannot be read, or differ in channels where they must not.
    """
    from morphem.extraction import check_panel, pixels_of
    from morphem.image_shards import (
        SHARDS,
        bit_depth_for,
        check_known,
        check_names,
        check_panels,
        make_shards,
        panels_of,
    )

    notes: list[str] = []
    if fabric.global_rank == 0:
        sources = _sources(options, check_names)
        sources = sources if choose is None else choose(sources)
        kinds = [one.pixels or pixels_of(encoder) for encoder, one in zip(encoders, settings, strict=True)]
        if options.query is None:
            check_known(sources)
            panels = panels_of(sources)
            side_by_side = [e.per_channel and s.combine == "concat" for e, s in zip(encoders, settings, strict=True)]
            if any(side_by_side):
                check_panels(panels)
            for encoder, kind in zip(encoders, kinds, strict=True):
                for panel in dict.fromkeys(panels.values()):
                    name = next(name for name, other in panels.items() if other == panel)
                    check_panel(encoder, panel, kind, encoder.input_size_px or 224, name)
        _, studies = make_shards(
            sources,
            folder,
            _ingest_settings(options, bit_depth_for(kinds)),
            overwrite=options.overwrite,
            workers=options.image_workers or len(os.sched_getaffinity(0)),
            progress=_bar(sources),
        )
        notes = [f"LEFT OUT   {name}: {why}" for study in studies for name, why in study.failures]
        notes += [f"LOOK AT    {study.flat} planes of {study.study} show nothing" for study in studies if study.flat]
        notes += [f"LOOK AT    {sentence}" for study in studies for _, _, sentence in study.lookalikes]
    fabric.barrier()
    return folder / SHARDS, notes


def _bar(sources: "Sequence[Source]") -> Callable[[str, int, int], None]:
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def show(study: str, done: int, total: int) -> None:
        if study not in bars:
            bars[study] = tqdm(total=total, initial=done, unit="image", desc=f"read {study}", dynamic_ncols=True)
        bars[study].update(done - bars[study].n)
        if done >= total:
            bars[study].close()

    return show


def _sources(
    options: argparse.Namespace, check: "Callable[[Sequence[Source], Mapping[str, str], Sequence[str]], None]"
) -> "list[Source]":
    """Open the images with what the user said about their channels."""
    from morphem.cli.open_sources import open_sources
    from morphem.data.schema import resolve_channel

    given = dict(_pair(word) for word in options.set)
    named = dict(_pair(word) for word in options.channels or () if "=" in word)
    in_order = [word for word in options.channels or () if "=" not in word]
    if named and in_order:
        raise ConfigError(
            f"--channels mixes NAME=TYPE with names in order ('{in_order[0]}'); take one of the two ways for all."
        )
    aliases = {name: resolve_channel(kind) for name, kind in named.items()}
    if in_order:
        for name in in_order:
            resolve_channel(name)
        given["channels"] = ",".join(in_order)
    try:
        sources = open_sources(options.images, options.source, given, aliases)
    except ConfigError as fault:
        if in_order and "--set channels" in str(fault):
            raise ConfigError(
                "the file names of these images tell channels apart, so names in order could go wrong; say what each "
                "shows with --channels NAME=TYPE (`morphem ingest --dry-run` lists the names)."
            ) from fault
        raise
    check(sources, aliases, in_order)
    return sources


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.rpartition("=") if word.count("=") > 1 else word.partition("=")
    if not equals or not key or not value:
        raise ConfigError(f"'{word}' must be written NAME=VALUE.")
    return key, value


def _ingest_settings(options: argparse.Namespace, bit_depth: Literal[8, 16]) -> "IngestSettings":
    from morphem.cells import cells_from_option
    from morphem.cli.open_sources import absolute
    from morphem.ingest.prepare import Preparation
    from morphem.ingest.scaling import DEFAULT_CLIP, parse_clip
    from morphem.ingest.settings import IngestSettings

    clip = DEFAULT_CLIP if options.clip is None else parse_clip(options.clip)
    finders = ("source", "none", "otsu", "adaptive", "cellpose")
    cells = options.cells or "source"
    return IngestSettings(
        preparation=Preparation(clip=clip, bit_depth=options.bit_depth or bit_depth),
        cells=cells_from_option(cells if cells in finders else absolute(cells)),
        pictures=False,
        max_bad=options.max_bad or 0.0,
    )


def _launched(options: argparse.Namespace) -> Any:
    """Return Lightning Fabric with all processes started: by itself, by torchrun, or by a scheduler."""
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.fabric.strategies.ddp import DDPStrategy

    several = options.devices > 1 or options.num_nodes > 1 or TorchElasticEnvironment.detect()
    # processes only wait for each other at the beginning and at the end, which may be hours apart
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=30)) if several else "auto"
    fabric = Fabric(
        accelerator=options.accelerator, devices=options.devices, num_nodes=options.num_nodes, strategy=strategy
    )
    fabric.launch()
    return fabric


def _summary(
    reports: "Sequence[EmbedReport]",
    models: Sequence[_Model],
    encoders: "Sequence[Encoder]",
    settings: "Sequence[EmbedSettings]",
    options: argparse.Namespace,
    notes: Sequence[str],
    seconds: float,
) -> str:
    first = reports[0]
    resumed = f", {first.n_resumed} of them from the earlier run" if first.n_resumed else ""
    empty = f" ({first.n_empty_images} images have no cells)" if first.n_empty_images else ""
    what = options.data or " ".join(options.images)
    lines = [f"embedded   {_number(first.n_images, 'image')} of {what} in {seconds:.1f} s{resumed}{empty}"]
    for report, model, encoder, one in zip(reports, models, encoders, settings, strict=True):
        lines += _model_lines(report, model, encoder, one, options.aggregate)
    lines += notes
    if first.path.suffix == ".parquet":
        lines.append(f'next       python -c "import pandas; print(pandas.read_parquet({str(first.path)!r}))"')
    return "\n".join(lines)


def _model_lines(
    report: "EmbedReport", model: _Model, encoder: "Encoder", settings: "EmbedSettings", level: str | None
) -> list[str]:
    from morphem.embed_recipe import in_words

    unit = level or settings.unit
    per = f"channel of a {unit}" if settings.combine == "none" else unit
    lines = [f"model      {model.place}", f"cut        {in_words(encoder, settings)}"]
    if settings.skip_empty is not None:
        lines.append(f"left out   {report.n_left_out} of {report.n_crops} tiles as empty")
    lines += [f"LOOK AT    {remark}" for remark in report.remarks]
    lines.append(
        f"wrote      {report.path}: {_number(report.n_rows, 'row')} (one per {per}) x {report.n_features} features"
    )
    if report.checked is None:
        lines.append("checked    nothing (--no-self-check)")
    else:
        rows, largest = _number(report.checked.n_rows, "row"), report.checked.largest
        lines.append(f"checked    {rows} against a slow reference: largest difference {largest:.1e}")
    return lines


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
