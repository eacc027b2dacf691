"""What every method shares: views on the training device, the optimizer and its schedules, exact resuming, export.

A method fills in `step`; it never asks how many channels there are, and it may refuse a channel strategy by
`compatible`. Everything that changes over a run is a function of the number of optimizer steps taken.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import version
from itertools import groupby
from typing import Any, Self

import lightning.pytorch as L
import torch
from lightning.fabric.utilities import rank_zero_warn
from torch import Tensor

from morphem import rng
from morphem.channels.base import ChannelStrategy
from morphem.channels.sequences import Sequences
from morphem.data.views import MultiCrop
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError
from morphem.losses.gathering import mean_over_rows
from morphem.methods.diversity import ChannelDiversity, Diversity, DiversityRecipe, weighted_diversity
from morphem.methods.finite import FiniteCheck
from morphem.optimizers import AdamWRecipe, clip_per_tensor, fill_state, set_rates
from morphem.schedules import Horizon
from morphem.sharding import is_sharded, shard
from morphem.spec import Configurable, to_spec
from morphem.types import ChannelBatch, StepOutput
from morphem.weights import inherited


class Method(L.LightningModule, Configurable, ABC):
    """Base of all methods.

    `torch`'s generator is seeded before every batch from (seed, epoch, batch, rank), so that dropout and stochastic
    depth are pure functions of the step, whatever else drew numbers before: there is no generator state to restore.

    Args:
        encoder: What is trained.
        views: Makes the views of a batch, on the training device.
        recipe: Optimizer and its schedules.
        seed: Seed of dropout and stochastic depth.

    Attributes:
        horizon: Length of the run in steps, once training has started.
        step_ended_at: When the last training step and its callbacks were done, in seconds of `time.perf_counter`.

    Raises:
        ConfigError: If the method does not work with the encoder's channel strategy.
    """

    def __init__(self, encoder: Encoder, views: MultiCrop, recipe: AdamWRecipe, seed: int = 0) -> None:
        super().__init__()
        if reason := self.compatible(encoder.channels):
            raise ConfigError(f"{type(self).__name__} does not work with {type(encoder.channels).__name__}: {reason}")
        _check_pixels(encoder)
        self.step_ended_at = time.perf_counter()
        self.encoder = encoder
        self.views = views
        self.recipe = recipe
        self.seed = seed
        self.horizon = Horizon(1, 1)
        self._peak_lr = recipe.lr
        self._finite = FiniteCheck()
        self.diversity: ChannelDiversity | None = None

    @classmethod
    @abstractmethod
    def tiny(cls, encoder: Encoder | None = None) -> Self:
        """Return the smallest instance that works, for tests and docs.

        Args:
            encoder: A tiny encoder of any channel strategy, for planes of 32 and of 16 px, to train in place of the
                method's own choice.
        """

    @classmethod
    def compatible(cls, strategy: ChannelStrategy) -> str | None:  # for subclasses
        """Return why the method cannot work with a channel strategy, in one sentence, or None where it can."""
        return None

    @abstractmethod
    def step(self, views: list[ChannelBatch]) -> StepOutput:
        """Compute the loss of a batch.

        In evaluation mode it must leave all state alone (centres, queues, teachers).

        Args:
            views: Dense normalised batches, one per view, global views first.
        """

    def keep_channels_apart(self, recipe: DiversityRecipe | None) -> None:
        """Prepare the diversity terms; for `__init__` of methods that offer them.

        Args:
            recipe: Weights; None for no such term.

        Raises:
            ConfigError: If the channel strategy has nothing to keep apart.
        """
        if recipe is not None:
            self.diversity = ChannelDiversity(self.encoder.channels, recipe)

    def seen_tokens(self, view: ChannelBatch, part: Sequences) -> Tensor | None:
        """Return which tokens of sequences the encoder sees, (B, T), bool; None for all of them.

        Args:
            view: Dense and normalised.
            part: Some of its sequences.
        """
        return None

    def with_diversity(self, output: StepOutput, views: list[ChannelBatch]) -> StepOutput:
        """Add the diversity terms of what the encoder is trained on, where they are on; the end of a `step`.

        Args:
            output: Of the method itself.
            views: As `step` got them.
        """
        if self.diversity is None:
            return output
        strategy, found = self.encoder.channels, []
        for _, group in groupby(views, key=lambda view: view.planes.shape[1:]):
            view = ChannelBatch.cat(list(group))
            parts = strategy.sequences(view)
            with torch.autocast(view.planes.device.type, enabled=False):
                found.append(self.diversity(strategy, view, parts, [self.seen_tokens(view, part) for part in parts]))
        terms = Diversity(*(torch.cat(values) for values in zip(*found, strict=True)))
        n_rows = torch.tensor(len(terms.within), device=terms.within.device)
        total = weighted_diversity(terms, self.diversity.recipe).sum()
        extra = mean_over_rows(total, n_rows, joint=self.training)
        logs = {f"diversity_{name}": value.detach().mean() for name, value in terms._asdict().items()}
        return StepOutput(output.loss + extra, output.embedding, {**output.logs, **logs})

    def before_update(self, step: int) -> None:
        """Do what comes between the gradients and the optimizer's step (nothing here).

        Args:
            step: Optimizer steps taken before this one.
        """

    def after_update(self, step: int) -> None:
        """Do what comes after the optimizer's step, once per step also where batches are accumulated (nothing here).

        Args:
            step: Optimizer steps taken before this one.
        """

    def exported_encoder(self) -> Encoder:
        """Return the encoder that probes look at and that is exported."""
        return self.encoder

    @property
    def exported_encoder_key(self) -> str:
        """Prefix of the exported encoder's keys in `state_dict`, with the dot."""
        exported = self.exported_encoder()
        return next(f"{name}." for name, module in self.named_modules() if module is exported)

    @torch.no_grad()
    def make_views(self, batch: ChannelBatch) -> list[ChannelBatch]:
        """Cut and augment a ragged batch of uint8 crops, in float32 whatever the precision of training."""
        with torch.autocast(batch.planes.device.type, enabled=False):
            return self.views(batch, self.encoder.normalizer)  # type: ignore[no-any-return]

    def training_step(self, batch: ChannelBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss, the detached embedding, and what the method logs.

        The logged loss is that of the first process's share of the batch.

        Raises:
            MorphemError: If the loss of the batch before was not finite.
        """
        self._finite.look()
        output = self.step(self.make_views(self.encoder.channels.select(batch)))
        self._finite.note(self.global_step, output.loss, output.logs)
        self.log("train/loss", output.loss, prog_bar=True, batch_size=batch.n_images)
        self.log_dict({f"train/{name}": value for name, value in output.logs.items()}, batch_size=batch.n_images)
        return {"loss": output.loss, "embedding": output.embedding, **output.logs}

    def validation_step(self, batch: ChannelBatch, batch_idx: int) -> None:
        """Log the loss of a held-out batch; nothing moves, and the same batch gives the same loss."""
        self._log_loss("val/loss", batch)

    def test_step(self, batch: ChannelBatch, batch_idx: int) -> None:
        """The same, for shards that were kept for the end."""
        self._log_loss("test/loss", batch)

    def _log_loss(self, name: str, batch: ChannelBatch) -> None:
        output = self.step(self.make_views(batch))
        self.log(name, output.loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=batch.n_images)

    def predict_step(self, batch: ChannelBatch, batch_idx: int) -> Tensor:
        """Embed a ragged batch with the exported encoder, (M, D), float32."""
        return self.exported_encoder().features(batch)

    def configure_model(self) -> None:
        """Cut the weights into shares, where the trainer's strategy is `ModelParallelStrategy`."""
        if self._device_mesh is not None:
            shard(self, self._device_mesh, ["step", "predict_step"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer; its rates are set before every step.

        Raises:
            ConfigError: If two kinds of clipping are on.
        """
        if self.recipe.clip_per_tensor is not None and self.trainer.gradient_clip_val:
            raise ConfigError(
                f"trainer.gradient_clip_val={self.trainer.gradient_clip_val} and "
                f"clip_per_tensor={self.recipe.clip_per_tensor} both clip the gradients; set one of them to null."
            )
        return self.recipe.build(self)

    def _find_horizon(self) -> Horizon:
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total) or total < 1:
            raise ConfigError(
                "the schedules need to know how long the run is, but it has no end (or no step); "
                "set trainer.max_epochs or trainer.max_steps."
            )
        batches = self.trainer.num_training_batches
        per_epoch = math.ceil(batches / self.trainer.accumulate_grad_batches) if math.isfinite(batches) else int(total)
        horizon = Horizon(max(per_epoch, 1), int(total))
        if horizon.steps(self.recipe.warmup_epochs) > horizon.total_steps:
            rank_zero_warn(
                f"The run ends after {horizon.total_steps} steps, within the learning rate's warm-up of "
                f"{horizon.steps(self.recipe.warmup_epochs)} steps (warmup_epochs={self.recipe.warmup_epochs}): "
                "the peak is never reached."
            )
        return horizon

    def _find_global_batch(self) -> int | None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        batch_size = getattr(data, "batch_size", None)  # a stranger's data module may have none
        if not isinstance(batch_size, int):
            return None
        return batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def on_fit_start(self) -> None:
        """Refuse weights in less than float32, whose rounding swallows the small steps of training.

        Raises:
            ConfigError: If a parameter is stored in half precision.
        """
        small = {parameter.dtype for parameter in self.parameters()} & {torch.float16, torch.bfloat16}
        if small:
            raise ConfigError(
                f"trainer.precision={self.trainer.precision} stores the weights in {small.pop()}, which rounds small "
                "updates away; use bf16-mixed or 32-true."
            )

    def on_train_start(self) -> None:
        """Find out how long the run is and how large its batches are, which the schedules need.

        Not in `configure_optimizers`: asking for the number of batches there makes Lightning build the loader before it
        has read the loader's state out of a checkpoint, which it then never loads (lightning 2.6.6, `setup_data`). For
        methods that ask there all the same, the state is loaded here.

        Raises:
            ConfigError: If the length of the run or its global batch size is unknown.
        """
        self.trainer.fit_loop._load_combined_loader_states()
        self.horizon = self._find_horizon()
        self._peak_lr = self.recipe.peak_lr(self._find_global_batch())
        if is_sharded(self):
            for optimizer in self.trainer.optimizers:
                fill_state(optimizer)

    def on_train_batch_start(self, batch: ChannelBatch, batch_idx: int) -> None:
        """Seed torch's generator from the position in the run alone."""
        torch.manual_seed(rng.mix(self.seed, "step", self.current_epoch, batch_idx, self.global_rank))

    def on_train_batch_end(self, outputs: Any, batch: ChannelBatch, batch_idx: int) -> None:
        """Note when the step was over; what comes until the next one starts is waiting for data."""
        self.step_ended_at = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Look at the last loss of the epoch, before its checkpoint is written.

        Raises:
            MorphemError: If it was not finite.
        """
        self._finite.look()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the learning rate and weight decay of this step."""
        step = self.global_step
        lr, weight_decay = self.lr_at(step), self.recipe.weight_decay_at(step, self.horizon)
        set_rates(optimizer, lr, weight_decay)
        self.log_dict({"train/lr": lr, "train/weight_decay": weight_decay})
        self.before_update(step)

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, once training has started."""
        return self.recipe.lr_at(step, self.horizon, self._peak_lr)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip per tensor where the recipe says so, else as the Trainer says."""
        if self.recipe.clip_per_tensor is None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip_per_tensor(self.parameters(), self.recipe.clip_per_tensor)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the method follow up (Lightning calls this once per step, not once per batch)."""
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        self.after_update(step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to build the encoder from the checkpoint alone, as plain data.

        Raises:
            MorphemError: If the last loss was not finite; the checkpoints that are there stay.
        """
        self._finite.look()
        checkpoint["morphem"] = {
            "spec": to_spec(self),
            "exported": self.exported_encoder_key,
            "version": version("morphem"),
            "card": inherited(self.exported_encoder().card),
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another architecture (one that is loaded in shares is compared by torch).

        Raises:
            WeightsError: If keys or shapes differ, with the first of them.
        """
        if "state_dict" not in checkpoint:
            return
        mine = {key: tuple(value.shape) for key, value in self.state_dict().items()}
        theirs = {key: tuple(value.shape) for key, value in checkpoint["state_dict"].items()}
        differing = [
            key for key in [*mine, *(key for key in theirs if key not in mine)] if mine.get(key) != theirs.get(key)
        ]
        if differing:
            key = differing[0]
            raise WeightsError(
                f"the checkpoint is of another architecture: {len(differing)} of {len(mine)} tensors differ, first "
                f"'{key}' with shape {theirs.get(key, 'missing')} where this {type(self).__name__} has "
                f"{mine.get(key, 'none')}; use the config that the checkpoint was trained with."
            )


def _check_pixels(encoder: Encoder) -> None:
    """Refuse encoders that do to pixels what training does not: views are made of 8-bit planes, normalised once.

    Raises:
        ConfigError: With the remedy.
    """
    if encoder.after_resize is not None:
        raise ConfigError(
            f"encoder.after_resize ({type(encoder.after_resize).__name__}) is applied where images are embedded, not "
            "to the views of training; move it into encoder.normalizer, or leave it out."
        )
    if encoder.input_domain not in ("uint8", "any"):
        raise ConfigError(
            f"the encoder takes {encoder.input_domain} pixels, but training reads 8-bit planes; give "
            "encoder.normalizer the input_domain uint8, with what it divides by in these units."
        )
