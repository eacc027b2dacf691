"""`morphem check`: everything that `fit` would do before its first step, without its memory and its output."""

import sys
from typing import Any

from morphem.cli.fit import condense, quiet_libraries
from morphem.cli.precheck import check_arguments
from morphem.errors import ConfigError

HELP = """usage: morphem check --config CONFIG [--config OVERLAY] [--model.lr 1e-4 ...]

Resolve the settings of a `fit`, build everything that it would build (the model without memory, on torch's meta
device), read one batch of samples, and say what the run would do. Takes the options of `morphem fit`.

example: morphem check --config dino_boc.yaml --data.root shards/
"""


def main(argv: list[str]) -> int:
    """Check the settings of a run.

    Args:
        argv: The options of `fit`.

    Returns:
        0, or 2 if a setting is wrong.

    Raises:
        MorphemError: If the data cannot be read.
    """
    if not argv or any(word in {"-h", "--help"} for word in argv):
        print(HELP)
        return 0
    try:
        checked = check_arguments("fit", argv)
    except ConfigError as fault:
        print(f"morphem: error: {fault}", file=sys.stderr)
        return 2
    quiet_libraries()
    from morphem.cli.trainer_cli import ParserError

    try:
        for line in report(checked):
            print(line)
    except (ParserError, ConfigError) as fault:
        print(f"morphem: error: {condense(str(fault))}", file=sys.stderr)
        return 2
    return 0


def report(argv: list[str]) -> list[str]:
    """Build everything and describe the run.

    Args:
        argv: Options of `fit` with full paths, as `check_arguments` gives them.

    Returns:
        Lines to print.
    """
    from morphem.cli.trainer_cli import CheckCLI

    cli = CheckCLI.build(argv)
    model, data, trainer = cli.model, cli.datamodule, cli.trainer
    data.trainer = trainer
    data.setup("fit")
    loader = data.train_dataloader()
    batch = next(iter(data.train_dataloader(num_workers=0)))
    encoder = model.encoder
    weights = sum(parameter.numel() for parameter in encoder.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    steps = len(loader)
    sizes = batch.sizes.unique(dim=0).tolist()
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else "unlimited"
    total = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [
        f"method      {type(model).__name__}: {trained:,} trained parameters",
        f"encoder     {type(encoder.channels).__name__}, {encoder.embed_dim} features, {weights:,} parameters",
        f"views       {_views(model)}",
        f"data        {data.describe()}",
        f"one batch   {batch.n_images} samples, {batch.n_planes} planes, sizes {_some(sizes)}, "
        f"channels {', '.join(sorted(set(batch.channel_types)))}",
        f"schedule    {steps} steps an epoch, {epochs} epochs" + (f", at most {total} steps" if total else ""),
        f"device      {type(trainer.accelerator).__name__.removesuffix('Accelerator')} x {trainer.world_size}, "
        f"precision {trainer.precision}",
        f"callbacks   {', '.join(sorted(type(callback).__name__ for callback in callbacks))}",
        "all settings resolve; no run was started",
    ]


def _views(model: Any) -> str:
    recipes = getattr(getattr(model, "views", None), "recipes", [])
    return ", ".join(f"{recipe.count} of {recipe.size_px} px" for recipe in recipes) or "as the method makes them"


def _some(sizes: list[list[int]]) -> str:
    shown = ", ".join(f"{height} x {width}" for height, width in sizes[:3])
    return shown + (f" and {len(sizes) - 3} more" if len(sizes) > 3 else "") + " px"
