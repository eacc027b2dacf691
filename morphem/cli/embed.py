"""`morphem embed`: shards to a feature table, with any trained encoder, on any number of devices."""

import argparse
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

EPILOG = """\
example:
  morphem embed --model runs/dino_boc --data shards/ --output features.parquet
  morphem embed --model CaicedoLab/MorphEm --data shards/ --output wells.parquet --unit cell --crop-size-px 96 \\
      --aggregate well --query "experiment.study == 'my study'"

A job that was stopped goes on where it was when the same command is given again.
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    result = argparse.ArgumentParser(
        prog="morphem embed", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("--model", required=True, help="run, folder, checkpoint, name of the zoo, or owner/name on the hub")
    add("--revision", help="commit, tag or branch on the hub")
    add("--data", required=True, help="shards: a folder, an address, or sample://NAME")
    add("--output", required=True, type=Path, help="features.parquet, or features.h5ad (needs morphem[anndata])")
    add("--unit", default="tile", choices=["tile", "cell", "image"], help="what a row is (default: %(default)s)")
    add("--tile-size-px", type=int, help="side of a tile in pixels, with --unit tile (default: 224)")
    add("--crop-size-px", type=int, help="side of a cell's crop in pixels, needed with --unit cell")
    add(
        "--combine", default="concat", choices=["concat", "mean", "none"], help="how channels become rows (%(default)s)"
    )
    add("--aggregate", choices=["cell", "image", "well"], help="average rows; left out: no averaging")
    add("--query", help="which channel planes, for example \"microscopy.type != 'fluorescence'\"")
    add("--batch-size", type=int, default=64, help="planes at once; no influence on the result (default: %(default)s)")
    add("--num-workers", type=int, default=0, help="processes per device that read (default: %(default)s)")
    add("--accelerator", default="auto", help="cpu, cuda, mps or auto (default: %(default)s)")
    add("--devices", type=int, default=1, help="how many, one process each (default: %(default)s)")
    add("--num-nodes", type=int, default=1, help="machines, started by a scheduler or torchrun (default: %(default)s)")
    add("--precision", default="32-true", choices=["32-true", "bf16-mixed", "16-mixed"], help="default: %(default)s")
    add("--overwrite", action="store_true", help="replace an output that exists, and drop parts of another job")
    return result


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
    # torch and Lightning take seconds to import; --help and mistyped options answer at once
    from morphem import zoo
    from morphem.embed import embed_to_file
    from morphem.extraction import EmbedSettings

    settings = EmbedSettings(
        options.unit, options.tile_size_px, options.crop_size_px, options.combine, options.query, options.precision
    )
    fabric = _launched(options)
    begin = time.perf_counter()
    encoder = zoo.load(options.model, revision=options.revision)
    report = embed_to_file(
        encoder,
        options.data,
        options.output,
        settings,
        aggregate=options.aggregate,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        device=fabric.device,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        barrier=fabric.barrier,
        overwrite=options.overwrite,
        progress=True,
    )
    if report is not None:
        print(_summary(report, options, time.perf_counter() - begin))
    return 0


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


def _summary(report: Any, options: argparse.Namespace, seconds: float) -> str:
    resumed = f", {report.n_resumed} of them from the earlier run" if report.n_resumed else ""
    empty = f" ({report.n_empty_images} images have no cells)" if report.n_empty_images else ""
    level = options.aggregate or options.unit
    lines = [
        f"embedded   {report.n_images} images of {options.data} in {seconds:.1f} s{resumed}{empty}",
        f"model      {options.model}",
        f"wrote      {report.path}: {report.n_rows} rows (one per {level}) x {report.n_features} features",
        f'next       python -c "import pandas; print(pandas.read_parquet({str(report.path)!r}))"',
    ]
    return "\n".join(lines if report.path.suffix == ".parquet" else lines[:-1])
