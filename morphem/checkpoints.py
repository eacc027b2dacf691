"""Checkpoints that appear whole or not at all.

Lightning writes through a temporary file in the system's temporary folder and then moves it; between two file systems
a move is a copy, and a kill during that copy leaves half a checkpoint under the final name. Here the temporary file
lies beside the final one.
"""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from morphem.errors import WeightsError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name, flushes it to the disk, and renames it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; an older one of that name stays until the new one is complete.

        Args:
            checkpoint: What to write.
            path: Its final name; addresses of object stores, which replace files whole by themselves, go to Lightning.
            storage_options: None; there are no options.

        Raises:
            WeightsError: If it cannot be written, for example because the disk is full; nothing is left behind.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.with_name(f"{final.name}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, final)
        except (OSError, RuntimeError) as fault:  # torch wraps a failed write in a RuntimeError
            partial.unlink(missing_ok=True)
            reason = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault).splitlines()[0]
            raise WeightsError(
                f"the checkpoint {final} could not be written ({reason}); make room or choose another folder, and "
                "resume from the last checkpoint."
            ) from fault
