"""`morphem fit`, `validate`, `test` and `predict`: LightningCLI over methods, shards and callbacks."""

import logging
import sys
import warnings

from morphem.cli.precheck import check_arguments
from morphem.errors import ConfigError

MAX_ERROR_LINES = 8


def main(argv: list[str]) -> int:
    """Run one of Lightning's commands.

    Args:
        argv: The command and what follows it.

    Returns:
        0, or 130 if the run was stopped with Ctrl-C and left a checkpoint.

    Raises:
        ConfigError: If a setting is wrong.
    """
    command, *rest = argv
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
