"""AdamW with a learning rate that falls from the last layer of an encoder to the first.

Source: dinov2/utils/param_groups.py and config.py of facebookresearch/dinov2 at fc49f49; Clark et al. 2020 (ELECTRA),
https://arxiv.org/abs/2003.10555.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from morphem.errors import ConfigError
from morphem.optimizers import AdamWRecipe

_BLOCK = re.compile(r"\bblocks\.(\d+)\.")


@dataclass(frozen=True)
class LayerwiseRecipe(AdamWRecipe):
    """AdamW as DINOv2 sets it: the rate grows with the root of the batch, and is lower in early layers.

    Attributes:
        layer_decay: The rate of a block of the encoder is that of the next one times this, above 0 and up to 1; what
            comes before the first block counts as one more.
        patch_lr_scale: Further factor for the patch projection, above 0.
    """

    layer_decay: float = 0.9
    patch_lr_scale: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay={self.layer_decay} has to be above 0 and at most 1.")
        if not self.patch_lr_scale > 0:
            raise ConfigError(f"patch_lr_scale={self.patch_lr_scale} has to be above 0.")

    def peak_lr(self, global_batch: int | None) -> float:
        """Return `lr` times the root of the global batch over `lr_per_images`, or `lr` where that is null."""
        return self.lr * math.sqrt(super().peak_lr(global_batch) / self.lr)

    def build(self, module: nn.Module) -> torch.optim.AdamW:
        """Build the optimizer: a group for each factor of the rate (`lr_scale`), with and without weight decay.

        Args:
            module: A method; the encoder that it trains is `encoder`, a token that it puts in `mask_token`.
        """
        scales = dict(zip(module.parameters(), self.scales(module).values(), strict=True))
        groups: dict[tuple[str, float], dict[str, Any]] = {}
        for group in super().build(module).param_groups:
            for parameter in group["params"]:
                settings = {"name": group["name"], "lr_scale": scales[parameter], "weight_decay": group["weight_decay"]}
                same = groups.setdefault((group["name"], scales[parameter]), {**settings, "params": []})
                same["params"].append(parameter)
        return torch.optim.AdamW(list(groups.values()), lr=self.lr, betas=self.betas, eps=self.eps)

    def scales(self, module: nn.Module) -> dict[str, float]:
        """Return the factor of every parameter's rate, by name.

        Heads and the encoder's last normalisation have 1, its last block `layer_decay`, the one before its square, and
        so on to what comes before the first block.

        Args:
            module: As `build` takes it.
        """
        names = [name for name, _ in module.named_parameters()]
        depth = 1 + max((int(found[1]) for name in names if (found := _BLOCK.search(name))), default=-1)
        return {name: self._scale(name, depth) for name in names}

    def _scale(self, name: str, depth: int) -> float:
        """The factor of one parameter of a network of `depth` blocks."""
        if "patch_embed." in name:
            return self.patch_lr_scale * self.layer_decay ** (depth + 1)
        if found := _BLOCK.search(name):
            return self.layer_decay ** (depth - int(found[1]))
        before = name.startswith(("encoder.", "mask_token")) and not name.endswith((".norm.weight", ".norm.bias"))
        return self.layer_decay ** (depth + 1) if before else 1.0


def scale_rates(optimizer: torch.optim.Optimizer) -> None:
    """Multiply the learning rate of each group by its factor, after all were set to one rate."""
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
