"""Going on where a run stopped, with the settings that it was started with.

By itself Lightning lets the checkpoint's settings win over the config and the command line, without a word, even over
the class of the model. Here the two are compared, and a difference is refused unless it is asked for by name.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from morphem.errors import ConfigError, WeightsError

CONFIG_KEY = "morphem_config"
"""Key of the resolved settings in a checkpoint, plain data."""

COMPARED_TRAINER_KEYS = {
    "precision",
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
    "overfit_batches",
    "deterministic",
}
"""Trainer settings that change what is learnt; the others (devices, logging, callbacks) may change between runs."""

FREE_DATA_KEYS = {"num_workers", "prefetch", "pin_memory", "root", "val_root", "batch_size"}
"""Data settings that do not change what is learnt: `root` may move, and the global batch is compared, not its parts."""


def load_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings stored in a checkpoint.

    Args:
        path: A checkpoint written by `morphem fit`.

    Raises:
        WeightsError: If the file is missing, damaged, holds more than plain data, or is not from `morphem fit`.
    """
    import pickle

    import torch

    if not Path(path).exists():
        raise WeightsError(
            f"There is no checkpoint '{path}'; give the path of a .ckpt file in a run's checkpoints folder."
        )
    from morphem.sharded_checkpoints import is_sharded_checkpoint, read_meta

    try:
        checkpoint = (
            read_meta(path)
            if is_sharded_checkpoint(path)
            else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        )
    except pickle.UnpicklingError as fault:
        raise WeightsError(
            f"'{path}' holds more than weights and plain data, so it is not opened (opening it could run code); "
            "use a checkpoint written by morphem fit."
        ) from fault
    except (RuntimeError, EOFError, OSError) as fault:
        raise WeightsError(f"'{path}' is not a readable checkpoint ({str(fault).splitlines()[0]}).") from fault
    settings = checkpoint.get(CONFIG_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(settings, dict):
        raise WeightsError(
            f"'{path}' was not written by morphem fit, so it cannot be resumed; load it with morphem.load."
        )
    return settings


def compared(settings: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    """Return the settings that a resumed run has to share, flat, by dotted key.

    Args:
        settings: Resolved settings of a run.
        world_size: Number of processes of that run.
    """
    trainer = settings.get("trainer") or {}
    flat: dict[str, Any] = {"seed_everything": settings.get("seed_everything")}
    flat.update(_flatten(settings.get("model"), "model"))
    flat.update({f"trainer.{key}": trainer.get(key) for key in sorted(COMPARED_TRAINER_KEYS)})
    data = settings.get("data") or {}
    arguments = data.get("init_args") or {}
    flat["data.class_path"] = data.get("class_path")
    flat.update(_flatten({k: v for k, v in arguments.items() if k not in FREE_DATA_KEYS}, "data.init_args"))
    if isinstance(arguments.get("batch_size"), int):
        flat["global batch size (data.batch_size x processes)"] = arguments["batch_size"] * world_size
    return flat


def _flatten(value: Any, above: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{above}.{key}")
    elif isinstance(value, list) and value:
        for position, item in enumerate(value):
            yield from _flatten(item, f"{above}.{position}")
    else:
        yield above, value


def differences(stored: Mapping[str, Any], current: Mapping[str, Any], world_size: int) -> dict[str, tuple[Any, Any]]:
    """Return what differs between a checkpoint's settings and the current ones: (stored, current) by dotted key.

    Args:
        stored: As `load_settings` gives them; `world_size` in them is the number of processes of that run.
        current: Resolved settings of this run.
        world_size: Number of processes of this run.
    """
    before = compared(stored, int(stored.get("world_size", 1)))
    now = compared(current, world_size)
    missing = "(not set)"
    return {
        key: (before.get(key, missing), now.get(key, missing))
        for key in [*before, *(key for key in now if key not in before)]
        if before.get(key, missing) != now.get(key, missing)
    }


def refuse_differences(
    path: str, stored: Mapping[str, Any], current: Mapping[str, Any], world_size: int, override: list[str]
) -> dict[str, tuple[Any, Any]]:
    """Refuse to resume with other settings, unless they are named.

    Args:
        path: The checkpoint, for the message.
        stored: Its settings.
        current: Settings of this run.
        world_size: Number of processes of this run.
        override: Keys (or beginnings of keys, or `all`) whose new values are wanted.

    Returns:
        The differences that were asked for.

    Raises:
        ConfigError: If there are others, with at most six of them, old and new value.
    """
    found = differences(stored, current, world_size)
    refused = {
        key: values
        for key, values in found.items()
        if "all" not in override and not any(key == name or key.startswith(f"{name}.") for name in override)
    }
    if not refused:
        return found
    lines = [f"{path} was made with other settings, which would change what is learnt:"]
    lines += [f"  {key}: {old!r} in the checkpoint, {new!r} now" for key, (old, new) in list(refused.items())[:5]]
    if len(refused) > 5:
        lines.append(f"  and {len(refused) - 5} more")
    keys = ",".join(key for key in refused if " " not in key) or "all"
    shown = keys if len(keys) < 120 else "all"
    lines.append(f"Give the same settings, or accept the new ones with --resume_override '[{shown}]'.")
    raise ConfigError("\n".join(lines))
