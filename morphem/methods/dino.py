"""DINO: self-distillation without labels.

Source: Caron et al. 2021, https://arxiv.org/abs/2104.14294; main_dino.py of facebookresearch/dino at 7c446df; the
defaults are those of the bag-of-channels training of CaicedoLab/CHAMMI-75 at b84a4ec (models/dinov1), MorphEm's own.
Differs from them: the teacher's temperature is warmed up per step, not per epoch; the centre moves once per optimizer
step, by the mean over all images of that step, also where batches are accumulated or of different sizes on different
devices; the loss is computed in float32.
"""

import math
from itertools import groupby
from typing import Literal, Self

import torch
import torch.distributed as dist
from lightly.loss import DINOLoss, KoLeoLoss
from torch import Tensor
from torch.nn.functional import cosine_similarity

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.views import MultiCrop
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.heads import DINOHead
from morphem.methods.base import Method
from morphem.methods.diversity import DiversityRecipe
from morphem.normalizers import SelfNormalize
from morphem.optimizers import AdamWRecipe
from morphem.schedules import cosine, linear
from morphem.teacher import follow, make_teacher
from morphem.types import ChannelBatch, StepOutput


class CenteredLoss(DINOLoss):  # type: ignore[misc]  # lightly is not typed
    """Lightly's DINO loss, whose centre waits for the optimizer's step and stays where it is in evaluation mode."""

    def __init__(self, n_prototypes: int, student_temperature: float, center_momentum: float) -> None:
        super().__init__(
            output_dim=n_prototypes,
            student_temp=student_temperature,
            center_momentum=center_momentum,
            warmup_teacher_temp_epochs=0,
        )
        self._seen: Tensor | None = None  # (K + 1,) sum of the teacher's scores, and their number

    @torch.no_grad()
    def answers(self, scores: Tensor, temperature: float) -> Tensor:
        """Return the answers of the teacher, (M, K), each summing to 1, for its scores, (M, K)."""
        answers: Tensor = ((scores - self.center[0]) / temperature).softmax(1)
        return answers

    @torch.no_grad()
    def update_center(self, teacher_out: Tensor) -> None:
        """Remember the teacher's scores, (V, M, K), in training mode (lightly calls this in `forward`)."""
        if not self.training:
            return
        count = teacher_out.new_tensor([teacher_out.shape[0] * teacher_out.shape[1]])
        seen = torch.cat([teacher_out.sum((0, 1)), count])
        self._seen = seen if self._seen is None else self._seen + seen

    @torch.no_grad()
    def move_center(self) -> None:
        """Move the centre towards the mean of all scores since the last move, over all processes."""
        if self._seen is None:
            return
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._seen)
        self.center.lerp_((self._seen[:-1] / self._seen[-1]).view_as(self.center), 1.0 - self.center_momentum)
        self._seen = None


class SinkhornLoss(CenteredLoss):
    """The DINO loss with balanced targets: over a batch every prototype is asked for equally often.

    The answers of the teacher are normalised over prototypes and over images in turns (Sinkhorn and Knopp), over all
    global views, images and devices together. One prototype for all images is thus no answer; that all prototypes are
    asked for equally by every image remains possible, and the less so the lower the temperature.

    Source: Caron et al. 2020, https://arxiv.org/abs/2006.09882; DINOv2 (https://arxiv.org/abs/2304.07193) takes it
    instead of the centre, with three turns.
    """

    TURNS = 3

    def forward(self, teacher_out: list[Tensor], student_out: list[Tensor], teacher_temp: float) -> Tensor:
        """Return the cross-entropy between balanced answers of the teacher and those of the student.

        Args:
            teacher_out: Scores of each global view, (M, K).
            student_out: Scores of each view, (M, K); the global views first.
            teacher_temp: Temperature of the teacher.
        """
        targets = torch.split(self.answers(torch.cat(teacher_out), teacher_temp), [len(view) for view in teacher_out])
        # The softmax of lightly's loss gives the targets back.
        as_scores = [teacher_temp * target.log() for target in targets]
        loss: Tensor = super().forward(as_scores, student_out, teacher_temp=teacher_temp)
        return loss

    @torch.no_grad()
    def answers(self, scores: Tensor, temperature: float) -> Tensor:
        """Return the balanced answers of the teacher, (M, K), each summing to 1, for its scores, (M, K)."""
        logs = scores / temperature  # logarithms, so that no temperature is too low for single precision
        for _ in range(self.TURNS):
            logs = logs - _log_sum_over_images(logs)
            logs = logs.log_softmax(1)
        return logs.exp()

    def update_center(self, teacher_out: Tensor) -> None:
        """Leave the centre at zero."""


def _log_sum_over_images(logs: Tensor) -> Tensor:
    """Return the logarithm of the sum of exponentials over all images of all processes, (M, K) to (1, K)."""
    together = dist.is_available() and dist.is_initialized()
    greatest = logs.amax(0, keepdim=True)
    if together:
        dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
    total = (logs - greatest).exp().sum(0, keepdim=True)
    if together:
        dist.all_reduce(total)
    return greatest + total.log()


_LOSSES: dict[str, type[CenteredLoss]] = {"mean": CenteredLoss, "sinkhorn_knopp": SinkhornLoss}


class DINO(Method):
    """Self-distillation without labels: a student matches a teacher that is its own moving average.

    The views of the first view recipe are the global views; the teacher sees only these, the student sees all.

    Args:
        encoder: The student; the teacher starts as its copy.
        views: Makes the views; the published recipe has 2 global views of 224 px and 8 local views of 96 px.
        n_prototypes: K, width of the head's output.
        head_hidden_dim: Width of the head's two hidden layers.
        head_bottleneck_dim: Width of the head's normalised layer.
        norm_last_layer: Whether prototypes keep length 1.
        head_batch_norm: Whether the head's hidden layers are normalised over the batch, which takes away what all
            embeddings have in common.
        student_temperature: Above 0.
        teacher_temperature: Above 0; lower is sharper. DINO's own ImageNet runs warm it up from 0.04 to 0.07.
        teacher_temperature_start: Where its warm-up starts; needs `teacher_temperature_warmup_epochs`.
        teacher_temperature_warmup_epochs: Epochs of its warm-up, 0 for none.
        centering: What keeps the teacher from giving all images one answer: `mean` takes a moving mean off its scores,
            as DINO; `sinkhorn_knopp` balances the answers of each batch, as DINOv2, and suits small batches too.
        center_momentum: Share of the old centre that is kept at each step, 0 to 1; of `mean`.
        koleo_weight: Weight of a term that pushes each embedding of a global view away from its nearest neighbour in
            the batch (KoLeo; DINOv2 takes 0.1); 0 for none.
        diversity: Terms that keep tokens and channel types apart (DiChaViT); null for none.
        teacher_momentum: Share of the old teacher that is kept at the first step, 0 to 1.
        teacher_momentum_end: The same at the end of the run; a cosine leads from one to the other.
        freeze_last_layer_epochs: Epochs in which the head's last layer does not move.
        lr: Peak learning rate for `lr_per_images` images in a global batch.
        lr_per_images: Global batch size to which `lr` belongs; null takes `lr` as it is.
        min_lr: Learning rate at the end of the run.
        warmup_epochs: Epochs over which the learning rate rises from 0.
        weight_decay: At the start of the run; biases and one-dimensional parameters have none.
        weight_decay_end: At its end; null keeps it constant.
        betas: Of AdamW.
        clip_per_tensor: Largest gradient norm of each parameter tensor; null for none.
        export: Which of the two networks probes look at and is exported. DINO's evaluation takes the teacher,
            CHAMMI-75's the student.
        seed: Seed of stochastic depth.

    Raises:
        ConfigError: If a number is out of its range, or there is no pair of different views.
    """

    def __init__(
        self,
        encoder: Encoder,
        views: MultiCrop,
        n_prototypes: int = 65536,
        head_hidden_dim: int = 2048,
        head_bottleneck_dim: int = 256,
        norm_last_layer: bool = True,
        head_batch_norm: bool = False,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        teacher_temperature_start: float | None = None,
        teacher_temperature_warmup_epochs: float = 0.0,
        centering: Literal["mean", "sinkhorn_knopp"] = "mean",
        center_momentum: float = 0.9,
        koleo_weight: float = 0.0,
        diversity: DiversityRecipe | None = None,
        teacher_momentum: float = 0.996,
        teacher_momentum_end: float = 1.0,
        freeze_last_layer_epochs: int = 1,
        lr: float = 5e-5,
        lr_per_images: int | None = 256,
        min_lr: float = 1e-6,
        warmup_epochs: float = 10.0,
        weight_decay: float = 0.04,
        weight_decay_end: float | None = 0.4,
        betas: tuple[float, float] = (0.9, 0.999),
        clip_per_tensor: float | None = 3.0,
        export: Literal["teacher", "student"] = "teacher",
        seed: int = 0,
    ) -> None:
        recipe = AdamWRecipe(
            lr=lr,
            lr_per_images=lr_per_images,
            min_lr=min_lr,
            warmup_epochs=warmup_epochs,
            weight_decay=weight_decay,
            weight_decay_end=weight_decay_end,
            betas=(betas[0], betas[1]),
            clip_per_tensor=clip_per_tensor,
        )
        super().__init__(encoder, views, recipe, seed=seed)
        self.keep_channels_apart(diversity)
        self.n_global_views = _count_global_views(encoder, views)
        self.teacher_temperature = teacher_temperature
        self.teacher_temperature_start = teacher_temperature_start
        self.teacher_temperature_warmup_epochs = teacher_temperature_warmup_epochs
        self.teacher_momentum = teacher_momentum
        self.teacher_momentum_end = teacher_momentum_end
        self.freeze_last_layer_epochs = freeze_last_layer_epochs
        self.koleo_weight = koleo_weight
        self.koleo = KoLeoLoss()
        self.export = export
        _check_ranges(self, student_temperature=student_temperature, center_momentum=center_momentum)
        self.head = DINOHead(
            encoder.embed_dim, n_prototypes, head_hidden_dim, head_bottleneck_dim, norm_last_layer, head_batch_norm
        )
        self.teacher_encoder = make_teacher(self.encoder)
        # Lightning leaves modes as they are; in evaluation mode a batch normalisation would not look at the batch.
        self.teacher_head = make_teacher(self.head).train()
        if centering not in _LOSSES:
            raise ConfigError(f"dino: centering='{centering}' is not known; it is 'mean' or 'sinkhorn_knopp'.")
        self.loss = _LOSSES[centering](n_prototypes, student_temperature, center_momentum)

    @classmethod
    def tiny(cls, encoder: Encoder | None = None) -> Self:
        """Two global views of 32 px, two local views of 16 px, 32 prototypes; a bag of channels where not told."""
        return cls(
            encoder or Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32),
            MultiCrop.tiny(),
            n_prototypes=32,
            head_hidden_dim=32,
            head_bottleneck_dim=16,
            teacher_momentum=0.9,  # a run of some hundred steps has no time for a slow teacher
            teacher_momentum_end=0.9,
            freeze_last_layer_epochs=0,
            lr=1e-2,
            lr_per_images=None,
            warmup_epochs=0,
        )

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of everything but the teacher, which has no dropout and no stochastic depth."""
        super().train(mode)
        self.teacher_encoder.eval()
        self.teacher_head.train(mode)  # has no dropout; batch normalisation looks at the batch, as in DINO
        return self

    def step(self, views: list[ChannelBatch]) -> StepOutput:
        """Compare the student's view of an image with the teacher's view of it, over all pairs of different views."""
        with torch.no_grad():
            teacher_embedding = embed_views(self.teacher_encoder, views[: self.n_global_views])  # (V_t, M, D)
            teacher = self.teacher_head(teacher_embedding.flatten(0, 1)).float()  # (V_t * M, K)
        student_embedding = embed_views(self.encoder, views)  # (V_s, M, D)
        student = self.head(student_embedding.flatten(0, 1)).float()  # (V_s * M, K)
        n_rows = student_embedding.shape[1]
        temperature = self.temperature_at(self.global_step) if self.training else self.teacher_temperature
        with torch.autocast(student.device.type, enabled=False):
            loss = self.loss(list(teacher.split(n_rows)), list(student.split(n_rows)), teacher_temp=temperature)
            if self.koleo_weight:
                spread = [self.koleo(view.float()) for view in student_embedding[: self.n_global_views]]
                koleo = torch.stack(spread).mean()
                loss = loss + self.koleo_weight * koleo
        embedding = student_embedding[0].detach().float()
        logs = self._signals(teacher, temperature)
        if self.koleo_weight:
            logs["koleo"] = koleo.detach()
        logs["agreement"] = cosine_similarity(embedding, teacher_embedding[0].float()).mean()
        return self.with_diversity(StepOutput(loss, embedding, logs), views)

    @torch.no_grad()
    def _signals(self, scores: Tensor, temperature: float) -> dict[str, Tensor]:
        """What tells a healthy teacher from a collapsed one, from its scores, (M, K).

        `teacher_entropy` is the mean entropy of the teacher's answers and `teacher_usage` the entropy of their mean,
        both as shares of ln K: an entropy of 1 says that it prefers no prototype, a usage of 0 that one takes all.
        """
        probabilities = self.loss.answers(scores, temperature)
        scale = math.log(scores.shape[1])
        return {
            "teacher_entropy": torch.special.entr(probabilities).sum(1).mean() / scale,
            "teacher_usage": torch.special.entr(probabilities.mean(0)).sum() / scale,
        }

    def temperature_at(self, step: int) -> float:
        """Return the teacher's temperature at a step."""
        start = self.teacher_temperature_start
        if start is None:
            return self.teacher_temperature
        return linear(step, self.horizon.steps(self.teacher_temperature_warmup_epochs), start, self.teacher_temperature)

    def momentum_at(self, step: int) -> float:
        """Return the teacher's momentum at a step."""
        return cosine(step, self.horizon.total_steps, self.teacher_momentum, self.teacher_momentum_end)

    def before_update(self, step: int) -> None:
        """Hold the head's last layer still in the first epochs."""
        if self.current_epoch < self.freeze_last_layer_epochs:
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None

    def after_update(self, step: int) -> None:
        """Move the teacher and the centre."""
        momentum = self.momentum_at(step)
        follow(self.teacher_encoder, self.encoder, momentum)
        follow(self.teacher_head, self.head, momentum)
        self.loss.move_center()

    def exported_encoder(self) -> Encoder:
        """Return the teacher's encoder or the student's, as `export` says."""
        return self.teacher_encoder if self.export == "teacher" else self.encoder


def embed_views(encoder: Encoder, views: list[ChannelBatch]) -> Tensor:
    """Embed views, all of one size in one pass.

    Args:
        encoder: Maps a dense batch to (M, D).
        views: Dense normalised batches of the same images; neighbours of one size go through the encoder together.

    Returns:
        (V, M, D).

    Raises:
        ConfigError: If the views have different numbers of rows.
    """
    rows: list[Tensor] = []
    for _, group in groupby(views, key=lambda view: view.planes.shape[1:]):
        same_size = list(group)
        counts = [view.n_planes if encoder.channels.per_channel else view.n_images for view in same_size]
        rows.extend(encoder(ChannelBatch.cat(same_size)).split(counts))
    counts_seen = sorted({len(row) for row in rows})
    if len(counts_seen) > 1:
        raise ConfigError(
            f"the views of a batch give {counts_seen} embeddings, so they cannot be compared row by row; "
            "with a bag of channels a view recipe cannot drop channels (channel_drop)."
        )
    return torch.stack(rows)


def _count_global_views(encoder: Encoder, views: MultiCrop) -> int:
    counts = [recipe.count for recipe in views.recipes]
    if sum(counts) < 2:
        raise ConfigError(
            "dino needs at least 2 views because a view is not compared with itself; "
            f"got {sum(counts)} (views.recipes)."
        )
    if encoder.channels.per_channel and any(recipe.channel_drop for recipe in views.recipes):
        raise ConfigError(
            "views.recipes.channel_drop has no meaning where each channel plane is embedded alone "
            f"({type(encoder.channels).__name__}); remove it."
        )
    return counts[0]


def _check_ranges(method: DINO, **further: float) -> None:
    momenta = {
        "teacher_momentum": method.teacher_momentum,
        "teacher_momentum_end": method.teacher_momentum_end,
        "center_momentum": further["center_momentum"],
    }
    for key, value in momenta.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"dino: {key}={value} has to be between 0 and 1.")
    if not method.koleo_weight >= 0:
        raise ConfigError(f"dino: koleo_weight={method.koleo_weight} has to be 0 or more.")
    start, epochs = method.teacher_temperature_start, method.teacher_temperature_warmup_epochs
    temperatures = {
        "student_temperature": further["student_temperature"],
        "teacher_temperature": method.teacher_temperature,
        "teacher_temperature_start": start,
    }
    for key, temperature in temperatures.items():
        if temperature is not None and not temperature > 0:
            raise ConfigError(f"dino: {key}={temperature} has to be above 0.")
    if (start is None) != (epochs == 0):
        raise ConfigError(
            f"dino: teacher_temperature_start={start} and teacher_temperature_warmup_epochs={epochs} belong together; "
            "set both, or null and 0."
        )
    if method.export not in ("teacher", "student"):
        raise ConfigError(f"dino: export='{method.export}' is not known; it is 'teacher' or 'student'.")
