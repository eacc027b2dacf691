"""Compiling the blocks of a network with torch.compile; where that fails, training goes on as it is."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities import rank_zero_warn
from torch import Tensor, nn

from morphem.errors import ConfigError


class Compile(L.Callback):
    """Compile every block of student and teacher, which are compiled once and used many times.

    Losses and weights are those of the network that is not compiled, up to rounding; stochastic depth and dropout draw
    other numbers. Where the compiler is missing or fails, one line says so and the blocks run as they are.

    Args:
        backend: Compiler, as `torch.compile` takes it.
        dynamic: Whether to compile for all sizes at once (true) or for each size (false); null: for the first size, and
            for all when a second one comes.

    Attributes:
        n_blocks: Blocks that are compiled.
        failed: Why the compiler failed, or None.
    """

    def __init__(self, backend: str = "inductor", dynamic: bool | None = None) -> None:
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise ConfigError(f"Compile: backend='{backend}' is not known; it is one of {', '.join(known)}.")
        self.backend = backend
        self.dynamic = dynamic
        self.n_blocks = 0
        self.failed: str | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the blocks; each is compiled when it is first called.

        Raises:
            ConfigError: If the network has no blocks.
        """
        found = blocks(pl_module)
        if not found:
            raise ConfigError(
                f"Compile: {type(pl_module).__name__} has no network with `blocks`, so there is nothing to compile; "
                "remove the callback."
            )
        self.n_blocks = len(found)
        for block in found:
            block.compile(backend=self._compile, dynamic=self.dynamic)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the blocks as they were."""
        for block in blocks(pl_module):
            block._compiled_call_impl = None

    def _compile(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """Compile a graph, or give it back as it is."""
        if self.failed is None:
            try:
                compiler = torch._dynamo.lookup_backend(self.backend)
                return compiler(graph, list(inputs))
            except torch._dynamo.exc.RestartAnalysis:  # no failure: torch looks again, with what it has learned
                raise
            except Exception as fault:  # a compiler may fail in any way
                lines = str(fault).splitlines()
                self.failed = f"{type(fault).__name__}: {lines[0] if lines else ''}"
                rank_zero_warn(f"torch.compile failed ({self.failed}); training goes on without it.")
        return graph.forward


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of all networks in a module: what stands in a list or sequence named `blocks`.

    Args:
        module: For example a method; its teacher counts too.
    """
    lists = [getattr(part, "blocks", None) for part in module.modules()]
    return [block for found in lists if isinstance(found, nn.ModuleList | nn.Sequential) for block in found]
