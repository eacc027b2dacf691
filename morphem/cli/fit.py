"""`morphem fit`, `validate`, `test` and `predict`: LightningCLI over methods, shards and callbacks."""

import logging
import sys
import warnings

from morphem.cli.precheck import check_arguments, shipped_configs
from morphem.errors import ConfigError

MAX_ERROR_LINES = 8

HELP = """usage: morphem {command} --config CONFIG [--config OVERLAY ...] [--KEY VALUE ...]

{purpose}

  --config CONFIG            a path, or the name of a shipped config: {configs}
                             may be repeated; later files win, and options win over files
  --data.root SHARDS         folder or address of shards, or sample://train
  --ckpt_path CHECKPOINT     the checkpoint to go on from (fit) or to look at (the others)
  --trainer.max_epochs N     and any other key of the config, with dots
  --print_config             print all settings of the run, with defaults, and stop
  --model.help METHOD        explain the settings of a method; --data.help likewise
  --help-all                 all options of Lightning's trainer

example: {example}
"""

PURPOSES = {
    "fit": ("Train an encoder without labels.", "morphem fit --config dino_boc.yaml --config sample.yaml"),
    "validate": (
        "Compute the loss on data.val_root and the probes of a checkpoint.",
        "morphem validate --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt --data.val_root shards/",
    ),
    "test": (
        "The same as validate, for shards that were kept for the end.",
        "morphem test --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt --data.val_root shards/",
    ),
    "predict": (
        "Embed crop by crop through the trainer; for a table of features use morphem embed.",
        "morphem predict --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt",
    ),
}
"""What each command is for, and an example of it."""


def main(argv: list[str]) -> int:
    """Run one of Lightning's commands.

    Args:
        argv: The command and what follows it.

    Returns:
        0, 2 if a setting is wrong, or 130 if the run was stopped with Ctrl-C and left a checkpoint.
    """
    command, *rest = argv
    if not rest or any(word in {"-h", "--help"} for word in rest):
        purpose, example = PURPOSES[command]
        configs = ", ".join(path.name for path in shipped_configs())
        print(HELP.format(command=command, purpose=purpose, example=example, configs=configs))
        return 0 if rest else 2
    rest = ["--help" if word == "--help-all" else word for word in rest]
    try:
        checked = check_arguments(command, rest)
    except ConfigError as fault:
        print(f"morphem: error: {fault}", file=sys.stderr)
        return 2
    quiet_libraries()
    from morphem.cli.trainer_cli import ParserError, run_cli

    try:
        return run_cli([command, *checked])
    except ParserError as fault:
        print(f"morphem: error: {condense(str(fault))}", file=sys.stderr)
        return 2
    except ConfigError as fault:
        print(f"morphem: error: {condense(str(fault))}", file=sys.stderr)
        return 2


def condense(message: str) -> str:
    """Cut a parser's message to its first lines that say something.

    Args:
        message: Any number of lines.
    """
    lines = [line.rstrip() for line in message.splitlines() if line.strip()]
    return "\n".join(line[:300] for line in lines[:MAX_ERROR_LINES])


_ADVICE = (
    r".*does not have many workers.*",
    r".*LeafSpec.*is deprecated.*",
    r".*`IterableDataset` has `__len__` defined.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*Total length of `.*` across ranks is zero.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*Starting from v1.9.0, `tensorboardX` has been removed.*",
    r".*LightningCLI's args parameter is intended to run from within Python.*",
)


def quiet_libraries() -> None:
    """Silence advice of Lightning that is no concern of a user of morphem; nothing about his data or settings."""
    for message in _ADVICE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage() and "TPU available" not in record.getMessage()
