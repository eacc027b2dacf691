"""Weights on disk: safetensors for exchange, weights-only unpickling for the rest, and the hub. No code is ever run."""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from morphem.errors import WeightsError
from morphem.pickles import first_line
from morphem.pickles import read_checkpoint as read_checkpoint  # re-exported: one module for every container

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
INHERITED = ("license", "possible_licenses", "restricted", "citation", "source", "family", "record")
"""What a model card keeps of the weights that a training started from: who made them, what may be done with them."""
_SHOWN = 5


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and bytes of tensors: the same in memory and in any container.

    Args:
        tensors: For example a `state_dict`.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Hash a file: SHA-256, 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a flat mapping of tensors, whatever the container is called.

    Args:
        path: safetensors, or a file of `torch.save` that holds tensors by name, at the top or under `state_dict`.

    Raises:
        WeightsError: If the file is missing, damaged, or holds anything but data.
    """
    if _is_safetensors(path):
        try:
            return load_file(path)
        except (SafetensorError, OSError) as fault:
            raise WeightsError(f"{path} is damaged ({fault}); fetch it again.") from fault
    content = read_checkpoint(path)
    tensors = content.get("state_dict", content)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(
            f"{path} is not a mapping from names to tensors; its keys are {', '.join(map(str, content))}."
        )
    return dict(tensors)


def read_any(path: Path, inert: Collection[str] = ()) -> dict[str, Any]:
    """Read safetensors or a file of `torch.save` as data, whatever the file is called.

    Args:
        path: The file.
        inert: See `read_checkpoint`.

    Raises:
        WeightsError: If it is missing, damaged, not a mapping, or holds more than data.
    """
    return dict(read_tensors(path)) if _is_safetensors(path) else read_checkpoint(path, inert)


def _is_safetensors(path: Path) -> bool:
    """Whether a file starts as safetensors do: 8 bytes of header length, then JSON."""
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; give a file of weights.")
    with path.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a module, key for key and shape for shape.

    Args:
        module: Takes the weights.
        tensors: By the names of the module's `state_dict`.
        source: Where they come from, for the message.

    Raises:
        WeightsError: If keys are missing or left over, or shapes differ; all kinds are listed.
    """
    own = module.state_dict()
    faults = [
        _listed("missing", [key for key in own if key not in tensors]),
        _listed("unexpected", [key for key in tensors if key not in own]),
        _listed(
            "of another shape",
            [
                f"{key} {tuple(tensors[key].shape)} for {tuple(own[key].shape)}"
                for key in own
                if key in tensors and tensors[key].shape != own[key].shape
            ],
        ),
    ]
    if any(faults):
        raise WeightsError(
            f"{source} does not fit this architecture: {'; '.join(fault for fault in faults if fault)}; "
            "load it with the architecture that it was trained with."
        )
    module.load_state_dict(dict(tensors), strict=True)


def _listed(what: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)} {what} ({', '.join(items[:_SHOWN])}{more})"


def inherited(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a model card that stays with weights that were trained further.

    Args:
        card: Of the weights that training starts from.
    """
    return {key: card[key] for key in INHERITED if key in card}


def write_folder(folder: Path, tensors: Mapping[str, Tensor], config: dict[str, Any], readme: str) -> None:
    """Write a folder in Hugging Face form; each file appears whole or not at all.

    Args:
        folder: Made where it does not exist.
        tensors: The weights.
        config: Becomes `config.json`; the hash of the weights' file is added under `weights_sha256`.
        readme: Becomes `README.md`, the model card.

    Raises:
        WeightsError: If the folder cannot be written.
    """
    partial = folder / f"{WEIGHTS_FILE}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, {"format": "pt"}
        )
        readable_by_others(partial)
        config = {**config, "weights_sha256": file_sha256(partial)}
        partial.replace(folder / WEIGHTS_FILE)
        _write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
        _write_text(folder / "README.md", readme)
    except (OSError, SafetensorError) as fault:
        partial.unlink(missing_ok=True)
        raise WeightsError(f"cannot write {folder} ({fault}); free some space or choose another folder.") from fault


def readable_by_others(path: Path) -> None:
    """Give a file the rights that new files have here; safetensors writes for its owner alone.

    Args:
        path: A file of safetensors.
    """
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a folder.

    Raises:
        WeightsError: If it is missing or damaged.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise WeightsError(f"{folder} has no {CONFIG_FILE}; give a folder that save_pretrained wrote.") from fault
    except (OSError, ValueError) as fault:
        raise WeightsError(f"{path} is damaged ({fault}); fetch it again.") from fault
    if not isinstance(config, dict):
        raise WeightsError(f"{path} holds a {type(config).__name__}; a config is a mapping.")
    return config


def read_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the weights of a folder, and check that they are those which its config describes.

    Raises:
        WeightsError: If they are missing or damaged, or their hash differs.
    """
    path = folder / WEIGHTS_FILE
    expected = config.get("weights_sha256")
    if expected is not None and path.is_file() and file_sha256(path) != expected:
        raise WeightsError(
            f"{path} is not the file that {CONFIG_FILE} beside it describes (its SHA-256 differs); fetch it again."
        )
    return read_tensors(path)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/name` of the Hugging Face hub."""
    return _HUB_ID.fullmatch(name) is not None


def is_offline() -> bool:
    """Whether the user works without the network (`HF_HUB_OFFLINE`, for files from anywhere)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def fetch(hub_id: str, files: Iterable[str], revision: str | None, local_files_only: bool | None) -> Path:
    """Return the folder of a hub repository in the local cache, downloading what is missing.

    Args:
        hub_id: `owner/name`.
        files: Names of the files that are needed.
        revision: A commit, tag or branch; the newest commit where not given.
        local_files_only: Use the cache alone; where not given, as `HF_HUB_OFFLINE` says.

    Raises:
        WeightsError: If a file is neither in the cache nor to be had, with what to fetch and where to put it.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    files = list(files)
    offline = local_files_only if local_files_only is not None else is_offline()
    try:
        folder = Path(
            huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=files, local_files_only=offline)
        )
    except GatedRepoError as fault:
        raise WeightsError(
            f"'{hub_id}' is given only to those who asked for it: ask at https://huggingface.co/{hub_id}, then log in "
            "on this machine (`hf auth login`) and try again."
        ) from fault
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as fault:
        raise WeightsError(_unreachable(hub_id, files, offline, first_line(fault))) from fault
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise WeightsError(_unreachable(hub_id, absent, offline, "these files are not there"))
    return folder


def _unreachable(hub_id: str, files: list[str], offline: bool, reason: str) -> str:
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    why = f"offline, and not in the cache {cache}" if offline else reason.rstrip(".")
    return (
        f"'{hub_id}' cannot be loaded ({why}); download {' and '.join(files)} from https://huggingface.co/{hub_id} "
        "into a folder and give that folder, or run once with a network (HF_HUB_OFFLINE=0)."
    )


def model_card(summary: str, card: Mapping[str, Any]) -> str:
    """Return a `README.md` with the front matter that the hub reads.

    Args:
        summary: One sentence on the encoder.
        card: Plain data about the model; `license` goes into the front matter.
    """
    license_line = [f"license: {card['license']}"] if "license" in card else []
    return "\n".join(
        [
            "---",
            "library_name: morphem",
            "pipeline_tag: image-feature-extraction",
            "tags: [morphem, microscopy]",
            *license_line,
            "---",
            "",
            "# An encoder for microscopy images",
            "",
            f"{summary} `{CONFIG_FILE}` says how pixels are prepared.",
            "",
            "```python",
            "import morphem",
            "",
            'encoder = morphem.load("this folder or hub id")',
            'features = encoder.embed(planes, channels=["nucleus", "actin"])  # uint8, (C, H, W)',
            "```",
            "",
        ]
    )
