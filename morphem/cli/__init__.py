"""The command line: `morphem COMMAND ...` and `python -m morphem COMMAND ...` do the same."""

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from morphem.errors import MorphemError, unknown_name

COMMANDS = {
    "fit": ("morphem.cli.fit", "train an encoder: morphem fit --config dino_boc.yaml --data.root shards/"),
    "validate": (
        "morphem.cli.fit",
        "loss and probes of a checkpoint: morphem validate --config RUN/config.yaml --ckpt_path last.ckpt",
    ),
    "test": ("morphem.cli.fit", "as validate, on the test shards"),
    "predict": ("morphem.cli.fit", "embed with a run's own data and trainer; most users want embed"),
    "check": (
        "morphem.cli.check",
        "resolve a config, build all of it without memory, read one sample: morphem check --config dino_boc.yaml",
    ),
    "ingest": ("morphem.cli.ingest", "images to shards: morphem ingest STUDY_FOLDER --output shards/"),
    "benchmark": (
        "morphem.cli.benchmark",
        "score an encoder or a table: morphem benchmark jumpcp1 --features profiles/ --output out.json",
    ),
    "embed": (
        "morphem.cli.embed",
        "images to a feature table: morphem embed --model RUN --images plate/ --output features.parquet",
    ),
    "maps": ("morphem.cli.maps", "pictures of what an encoder looks at: morphem maps --model RUN --data shards/ ..."),
    "profile": (
        "morphem.cli.profile",
        "features to profiles: morphem profile features.parquet --recipe profile_jump.yaml --output profiles.parquet",
    ),
    "models": (
        "morphem.cli.models",
        "pretrained encoders: morphem models list, show, download, convert, verify, export",
    ),
    "plugins": ("morphem.cli.plugins", "list what is registered, from which package, and check it: morphem plugins"),
}
"""Module and one-line help of every command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Words after the program's name; those of the process where not given.

    Returns:
        0 if all went well, 1 for an error at run time, 2 for wrong settings, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except KeyboardInterrupt:
        print("morphem: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as fault:
        sentence = explain(fault)
        if sentence is None:
            raise
        print(f"morphem: error: {sentence}", file=sys.stderr)
        return 1


def _run(words: list[str]) -> int:
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"morphem {version('morphem')}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        print(f"morphem: error: {unknown_name('command', command, COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[command][0])
    result: int = module.main(words) if COMMANDS[command][0] == "morphem.cli.fit" else module.main(rest)
    return result


def usage() -> str:
    """Return the overview of all commands."""
    lines = ["usage: morphem COMMAND [options]     (python -m morphem COMMAND does the same)", "", "commands:"]
    lines += [f"  {name:9} {text}" for name, (_, text) in COMMANDS.items()]
    lines += [
        "",
        "morphem COMMAND --help shows the options of a command. Configs are looked for in the working directory,",
        "then among those that the package ships.",
    ]
    return "\n".join(lines)


def explain(fault: BaseException) -> str | None:
    """Return one sentence for an error that a user can put right, or None for a fault of the program.

    Errors are looked for along the chain of causes, because libraries wrap them, and out of the text that a data
    loader's worker sends home.

    Args:
        fault: What was raised.
    """
    seen: BaseException | None = fault
    while seen is not None:
        if isinstance(seen, MorphemError):
            return _without_traceback(str(seen))
        if isinstance(seen, OSError) and seen.errno == errno.ENOSPC:
            place = f" for {seen.filename}" if seen.filename else ""
            return f"No space left on the device{place}; free some and run again."
        if isinstance(seen, PermissionError | IsADirectoryError | NotADirectoryError) and seen.filename:
            return f"{seen.filename}: {seen.strerror}."
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def _without_traceback(text: str) -> str:
    """The message alone, where a worker process sent it with its traceback."""
    if "Original Traceback" not in text:
        return text
    last = text.strip().rpartition("\nmorphem.errors.")[2]
    return last.partition(": ")[2] or last
