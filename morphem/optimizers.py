"""Optimizer settings, parameter groups, and clipping per tensor.

Source: main_dino.py and utils.py of facebookresearch/dino at 7c446df (`get_params_groups`, `clip_gradients`); Lion:
Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2.
Differs from DINO: clipping never waits for the device.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from morphem.errors import ConfigError
from morphem.schedules import Horizon, cosine, warmup_cosine
from morphem.sharding import local, norms


@dataclass(frozen=True)
class AdamWRecipe:
    """AdamW with a warm-up, a cosine schedule and a weight decay that changes over the run.

    Attributes:
        lr: Peak learning rate, for `lr_per_images` images in a global batch, above 0.
        lr_per_images: Global batch size to which `lr` belongs; the rate grows in proportion to the batch (images per
            device x devices x accumulated batches). None: `lr` is the rate itself, whatever the batch.
        min_lr: Learning rate towards which the cosine falls; not scaled with the batch.
        warmup_epochs: Epochs over which the rate rises from 0.
        weight_decay: At the start of the run, at least 0.
        weight_decay_end: At its end; a cosine leads from one to the other. None: constant.
        betas: Decay of the two running means of AdamW.
        eps: Added to the denominator of AdamW.
        clip_per_tensor: Largest gradient norm of each parameter tensor by itself; None: no clipping of this kind (the
            Trainer's `gradient_clip_val` clips the norm over all of them).
    """

    lr: float
    lr_per_images: int | None = 256
    min_lr: float = 1e-6
    warmup_epochs: float = 10.0
    weight_decay: float = 0.04
    weight_decay_end: float | None = 0.4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_per_tensor: float | None = 3.0

    def __post_init__(self) -> None:
        above_zero = {"lr": self.lr, "lr_per_images": self.lr_per_images, "clip_per_tensor": self.clip_per_tensor}
        for key, value in above_zero.items():
            if value is not None and not value > 0:
                raise ConfigError(f"{key}={value} has to be above 0; correct it in the config.")
        not_negative = {
            "min_lr": self.min_lr,
            "warmup_epochs": self.warmup_epochs,
            "weight_decay": self.weight_decay,
            "weight_decay_end": self.weight_decay_end,
        }
        for key, value in not_negative.items():
            if value is not None and not value >= 0:
                raise ConfigError(f"{key}={value} has to be 0 or more; correct it in the config.")

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer over the trained parameters of a module."""
        groups = weight_decay_groups(module)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)

    def peak_lr(self, global_batch: int | None) -> float:
        """Return the peak learning rate for a global batch size (which may be None where the rate is absolute)."""
        if self.lr_per_images is None:
            return self.lr
        if global_batch is None:
            raise ConfigError(
                f"lr={self.lr} is per {self.lr_per_images} images, but the global batch size is unknown because the "
                "data do not come from a data module with 'batch_size'; pass one, or set lr_per_images to null and "
                "give lr as it should be."
            )
        return self.lr * global_batch / self.lr_per_images

    def lr_at(self, step: int, horizon: Horizon, peak: float) -> float:
        """Return the learning rate of a step."""
        return warmup_cosine(step, horizon.total_steps, horizon.steps(self.warmup_epochs), peak, self.min_lr)

    def weight_decay_at(self, step: int, horizon: Horizon) -> float:
        """Return the weight decay of a step."""
        end = self.weight_decay if self.weight_decay_end is None else self.weight_decay_end
        return cosine(step, horizon.total_steps, self.weight_decay, end)


class Lion(torch.optim.Optimizer):
    """Lion: every weight moves by the learning rate, in the direction of the sign of a running mean.

    Args:
        params: As an optimizer takes them.
        lr: Above 0; about a third to a tenth of AdamW's.
        betas: Share of the running mean in the direction of a step, and share of it that is kept.
        weight_decay: Decoupled: a weight shrinks by `lr * weight_decay`.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure: Computes loss and gradients before it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in (parameter for parameter in group["params"] if parameter.grad is not None):
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                mean, gradient = state["exp_avg"], parameter.grad
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_((first * mean + (1 - first) * gradient).sign_(), alpha=-group["lr"])
                mean.mul_(second).add_(gradient, alpha=1 - second)
        return loss


@dataclass(frozen=True)
class LionRecipe(AdamWRecipe):
    """The same schedules for Lion; `eps` has no meaning."""

    def build(self, module: nn.Module) -> Lion:
        """Build the optimizer over the trained parameters of a module."""
        return Lion(weight_decay_groups(module), self.lr, self.betas, self.weight_decay)


RECIPES: dict[str, type[AdamWRecipe]] = {"adamw": AdamWRecipe, "lion": LionRecipe}
"""Recipes by the name of their rule."""


def weight_decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return the trained parameters in two groups: with weight decay, and without.

    Biases and one-dimensional parameters (the gains of LayerNorm) are exempt; the class token, the position embedding
    and the patch convolution are decayed, as in DINO's code and unlike timm's lists.

    Args:
        module: Its parameters without `requires_grad` are left out.

    Returns:
        Two groups as an optimizer takes them, with `name` `decayed` and `exempt`; the second has weight decay 0.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (exempt if name.endswith(".bias") or parameter.ndim <= 1 else decayed).append(parameter)
    return [{"name": "decayed", "params": decayed}, {"name": "exempt", "params": exempt, "weight_decay": 0.0}]


def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters that have not been stepped yet the state that their optimizer would begin with.

    Parameters that stand still at first, as a frozen last layer, would have none, and checkpoints that are loaded in
    shares have to hold the state of every parameter.

    Args:
        optimizer: Any; only the states of AdamW and Lion are known.
    """
    if not isinstance(optimizer, torch.optim.AdamW | Lion):
        return
    names = ("exp_avg",) if isinstance(optimizer, Lion) else ("exp_avg", "exp_avg_sq")
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        if not optimizer.state[parameter]:
            running = {name: torch.zeros_like(parameter) for name in names}
            steps = {} if isinstance(optimizer, Lion) else {"step": torch.tensor(0.0)}
            optimizer.state[parameter] = {**steps, **running}


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Give all groups a learning rate, and the group `decayed` a weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group.get("name") == "decayed":
            group["weight_decay"] = weight_decay


@torch.no_grad()
def clip_per_tensor(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scale each gradient by itself so that its norm is at most `max_norm`; all on the device, without waiting for it.

    Args:
        parameters: Those without a gradient are left out.
        max_norm: Above 0; 3.0 in DINO. A gradient g is multiplied by min(1, max_norm / (|g| + 1e-6)).
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    scales = (max_norm / (norms(gradients) + 1e-6)).clamp(max=1.0)  # (number of tensors,)
    torch._foreach_mul_([local(gradient) for gradient in gradients], scales.unbind())
