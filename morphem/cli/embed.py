"""`morphem embed`: images or shards to a feature table, with any published or trained encoder, on any devices."""

import argparse
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphem.cli.embed_input import add_input, check_input, make_input
from morphem.errors import ConfigError

if TYPE_CHECKING:
    from morphem.embed_job import EmbedReport
    from morphem.encoder import Encoder
    from morphem.extraction import EmbedSettings

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
