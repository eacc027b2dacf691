"""Checkpoints that are folders, with one file of every process: reading them in one process, as plain data.

Written by Lightning's `ModelParallelStrategy` (save_distributed_checkpoint) through torch.distributed.checkpoint:
`meta.pt` is what is not sharded, `.metadata` says which tensors lie where, `*.distcp` hold the tensors.
"""

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphem.errors import WeightsError

META_FILE = "meta.pt"
_INDEX_FILE = ".metadata"
_PARTS = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *((_PARTS, name) for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING", "Metadata")),
    *((_PARTS, name) for name in ("MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("Path", "PosixPath", "WindowsPath")),
}


def is_sharded_checkpoint(path: str | Path) -> bool:
    """Whether a path is a folder that holds a sharded checkpoint."""
    return (Path(path) / META_FILE).is_file() and (Path(path) / _INDEX_FILE).is_file()


def read_meta(path: str | Path) -> dict[str, Any]:
    """Return what a sharded checkpoint holds beside tensors: settings, counters, the spec of the method.

    The index is looked at too, because Lightning unpickles it as it is when a run goes on from the checkpoint.

    Args:
        path: The folder.

    Raises:
        WeightsError: If it is damaged, or holds more than weights and plain data.
    """
    folder = Path(path)
    _read_index(folder)
    try:
        meta: dict[str, Any] = torch.load(folder / META_FILE, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        raise WeightsError(
            f"{folder / META_FILE} holds more than plain data, so it is not opened (opening it could run code); "
            "use a checkpoint written by morphem fit."
        ) from fault
    except (RuntimeError, EOFError, OSError) as fault:
        raise WeightsError(f"{folder / META_FILE} is not readable ({_first_line(fault)}).") from fault
    return meta


def read_sharded(path: str | Path) -> dict[str, Any]:
    """Return a sharded checkpoint as a checkpoint of one file would be, without the state of the optimizer.

    Args:
        path: The folder; the number of processes that wrote it does not matter.

    Raises:
        WeightsError: If a file is missing or damaged, or holds more than weights and plain data.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    folder, prefix = Path(path), "state_dict."
    meta = read_meta(folder)
    index = _read_index(folder)
    tensors: dict[str, Tensor] = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in index.state_dict_metadata.items()
        if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it should be here
            load(tensors, storage_reader=FileSystemReader(folder), no_dist=True)
    except (CheckpointException, RuntimeError, OSError) as fault:
        raise WeightsError(f"{folder} is damaged ({_first_line(fault)}); take another checkpoint.") from fault
    return {**meta, "state_dict": {key.removeprefix(prefix): value for key, value in tensors.items()}}


class _IndexReader(pickle.Unpickler):
    """Builds what an index is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few classes of an index, or a torch dtype."""
        if (module, name) in _ALLOWED or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _read_index(folder: Path) -> Any:
    """Return the index of a sharded checkpoint, a `torch.distributed.checkpoint.metadata.Metadata`."""
    from torch.distributed.checkpoint.metadata import Metadata

    try:
        index = _IndexReader(io.BytesIO((folder / _INDEX_FILE).read_bytes())).load()
    except Exception as fault:  # damaged pickles fail in any way
        raise WeightsError(
            f"{folder / _INDEX_FILE} is damaged or holds more than an index ({_first_line(fault)}), so it is not "
            "opened; use a checkpoint written by morphem fit."
        ) from fault
    if not isinstance(index, Metadata):
        raise WeightsError(f"{folder / _INDEX_FILE} is a {type(index).__name__}, not the index of a checkpoint.")
    return index


def _first_line(fault: BaseException) -> str:
    lines = str(fault).splitlines()
    return f"{type(fault).__name__}: {lines[0]}" if lines else type(fault).__name__
