"""DINOv2: DINO on whole images, iBOT on hidden patches, and embeddings that keep apart.

Source: Oquab et al. 2023, https://arxiv.org/abs/2304.07193; dinov2/train/ssl_meta_arch.py of facebookresearch/dinov2 at
fc49f49. The defaults are the recipe of channel-adaptive DINO (De Lorenci et al. 2025; the warm-up of the teacher's
temperature is that of a fork of its code, sondvo/dinov2 at 8cb2f4b), else DINOv2's own (ssl_default_config.yaml at
01c3638).
Differs from them: hidden blocks are drawn for each image alone (see `block_masks`); KoLeo looks for neighbours on all
devices; gradients are clipped tensor by tensor, where theirs are clipped network by network; the centre moves as in
`dino`.
"""

from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from morphem.block_masks import hidden_in_blocks
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.channels.sequences import Sequences
from morphem.data.views import MultiCrop
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.heads import DINOHead
from morphem.layerwise import LayerwiseRecipe, scale_rates
from morphem.losses.koleo import koleo
from morphem.losses.patch_distillation import PatchDistillation
from morphem.methods.dino import DINO, embed_views
from morphem.methods.diversity import DiversityRecipe
from morphem.normalizers import SelfNormalize
from morphem.teacher import follow, make_teacher
from morphem.types import ChannelBatch, StepOutput


class Patches(NamedTuple):
    """Patch tokens of a batch, and which is which.

    Attributes:
        tokens: After the last normalisation, (M, D).
        places: Row of the strategy's output, plane of the batch and patch of the grid, as one number, (M,), int64.
        weights: One over the number of patches of the same sequence, (M,).
    """

    tokens: Tensor
    places: Tensor
    weights: Tensor


class DINOv2(DINO):
    """Self-distillation of whole images and of hidden patches.

    A student that does not see some patches of the global views says of the images, and of each hidden patch, what a
    teacher says that sees all of them. Needs a channel strategy that works on patch tokens; over several channels, a
    hidden patch is one of one channel.

    Args:
        encoder: The student; the teacher starts as its copy.
        views: Makes the views; channel-adaptive DINO has 2 global views of 224 px with an area of 0.4 to 1, and 8
            local views of 96 px with 0.005 to 0.4.
        n_prototypes: K, width of the head's output.
        head_hidden_dim: Width of the head's two hidden layers.
        head_bottleneck_dim: Width of the head's normalised layer.
        patch_head: `shared` scores patches with the head of images, as channel-adaptive DINO; `own` gives patches a
            head of their own, as the larger DINOv2 networks.
        n_patch_prototypes: Width of the patches' own head; null takes `n_prototypes`.
        patch_weight: Weight of the loss of hidden patches, above 0.
        koleo_weight: Weight of KoLeo, the sum over global views, at least 0.
        diversity: Terms that keep tokens and channel types apart (DiChaViT); null for none.
        mask_probability: That a global view of an image (or plane) has hidden patches, above 0 and up to 1.
        mask_ratio: Smallest and largest share of patches that are hidden then, above 0 and below 1.
        mask_channels: Whether all channels of an image lose the same patches (`together`), which leaves nothing to copy
            from another channel, or each its own (`apart`); the same for a strategy that embeds planes alone.
        student_temperature: Above 0.
        teacher_temperature: Above 0.
        teacher_temperature_start: Where its warm-up starts; null for none.
        teacher_temperature_warmup_epochs: Epochs of its warm-up, 0 for none.
        centering: `mean` takes a moving mean off the teacher's scores; `sinkhorn_knopp` balances its answers over a
            batch; the same for images and, by themselves, for patches.
        center_momentum: Share of the old centre that is kept at each step, 0 to 1; of `mean`.
        teacher_momentum: Share of the old teacher that is kept at the first step, 0 to 1.
        teacher_momentum_end: The same at the end of the run; a cosine leads from one to the other.
        freeze_last_layer_epochs: Epochs in which the last layers of the heads do not move.
        lr: Peak learning rate for `lr_per_images` images in a global batch.
        lr_per_images: Global batch size to which `lr` belongs; the rate grows with the root of the batch. Null takes
            `lr` as it is.
        layer_decay: Rate of a block of the encoder, as a share of that of the next; 1 for one rate.
        patch_lr_scale: Further factor of the rate of the patch projection, above 0.
        min_lr: Learning rate at the end of the run.
        warmup_epochs: Epochs over which the learning rate rises from 0.
        weight_decay: At the start of the run; biases and one-dimensional parameters have none.
        weight_decay_end: At its end; null keeps it constant.
        betas: Of AdamW.
        clip_per_tensor: Largest gradient norm of each parameter tensor; null for none.
        export: Which of the two networks probes look at and is exported.
        seed: Seed of stochastic depth.

    Raises:
        ConfigError: If a number is out of its range, there is no pair of different views, or the channel strategy does
            not work on patch tokens.
    """

    def __init__(
        self,
        encoder: Encoder,
        views: MultiCrop,
        n_prototypes: int = 65536,
        head_hidden_dim: int = 2048,
        head_bottleneck_dim: int = 256,
        patch_head: Literal["shared", "own"] = "shared",
        n_patch_prototypes: int | None = None,
        patch_weight: float = 1.0,
        koleo_weight: float = 0.1,
        diversity: DiversityRecipe | None = None,
        mask_probability: float = 0.5,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        mask_channels: Literal["together", "apart"] = "apart",
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        teacher_temperature_start: float | None = 0.04,
        teacher_temperature_warmup_epochs: float = 20.0,
        centering: Literal["mean", "sinkhorn_knopp"] = "mean",
        center_momentum: float = 0.9,
        teacher_momentum: float = 0.996,
        teacher_momentum_end: float = 1.0,
        freeze_last_layer_epochs: int = 1,
        lr: float = 5e-4,
        lr_per_images: int | None = 1024,
        layer_decay: float = 0.9,
        patch_lr_scale: float = 0.2,
        min_lr: float = 1e-6,
        warmup_epochs: float = 20.0,
        weight_decay: float = 0.04,
        weight_decay_end: float | None = 0.2,
        betas: tuple[float, float] = (0.9, 0.999),
        clip_per_tensor: float | None = 3.0,
        export: Literal["teacher", "student"] = "teacher",
        seed: int = 0,
    ) -> None:
        super().__init__(
            encoder,
            views,
            n_prototypes=n_prototypes,
            head_hidden_dim=head_hidden_dim,
            head_bottleneck_dim=head_bottleneck_dim,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            teacher_temperature_start=teacher_temperature_start,
            teacher_temperature_warmup_epochs=teacher_temperature_warmup_epochs,
            centering=centering,
            center_momentum=center_momentum,
            koleo_weight=koleo_weight,
            diversity=diversity,
            teacher_momentum=teacher_momentum,
            teacher_momentum_end=teacher_momentum_end,
            freeze_last_layer_epochs=freeze_last_layer_epochs,
            export=export,
            seed=seed,
        )
        self.recipe = LayerwiseRecipe(
            lr=lr,
            lr_per_images=lr_per_images,
            min_lr=min_lr,
            warmup_epochs=warmup_epochs,
            weight_decay=weight_decay,
            weight_decay_end=weight_decay_end,
            betas=(betas[0], betas[1]),
            clip_per_tensor=clip_per_tensor,
            layer_decay=layer_decay,
            patch_lr_scale=patch_lr_scale,
        )
        low, high = mask_ratio
        _check(patch_weight, mask_probability, (low, high), mask_channels)
        self.patch_weight = patch_weight
        self.mask_probability = mask_probability
        self.mask_ratio = (float(low), float(high))
        self.mask_channels = mask_channels
        self.mask_token = nn.Parameter(torch.zeros(1, encoder.embed_dim))
        own = _own_prototypes(patch_head, n_patch_prototypes, n_prototypes)
        self.patch_head = DINOHead(encoder.embed_dim, own, head_hidden_dim, head_bottleneck_dim) if own else None
        self.teacher_patch_head = None if self.patch_head is None else make_teacher(self.patch_head)
        self.patch_loss = PatchDistillation(
            own or n_prototypes, student_temperature, center_momentum, balanced=centering == "sinkhorn_knopp"
        )

    @classmethod
    def compatible(cls, strategy: ChannelStrategy) -> str | None:
        """Refuse a strategy without patch tokens."""
        return None if strategy.tokenised else "dinov2 predicts hidden patches, and it gives no patch tokens."

    @classmethod
    def tiny(cls, encoder: Encoder | None = None) -> Self:
        """Two global views of 32 px, two local views of 16 px, 32 prototypes; a bag of channels where not told."""
        return cls(
            encoder or Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32),
            MultiCrop.tiny(),
            n_prototypes=32,
            head_hidden_dim=32,
            head_bottleneck_dim=16,
            teacher_temperature=0.04,
            teacher_temperature_start=None,
            teacher_temperature_warmup_epochs=0,
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
        if self.teacher_patch_head is not None:
            self.teacher_patch_head.eval()
        return self

    def step(self, views: list[ChannelBatch]) -> StepOutput:
        """Compare what student and teacher say of images, over all pairs of different views, and of hidden patches."""
        n_global = self.n_global_views
        whole = ChannelBatch.cat(views[:n_global])
        student_images, seen = self._student(whole)  # (V_t * M, D)
        n_rows = len(student_images) // n_global
        if len(views) > n_global:
            student_images = torch.cat([student_images, embed_views(self.encoder, views[n_global:]).flatten(0, 1)])
        with torch.no_grad():
            teacher_images, teacher_patches = self._teacher(whole, seen.places)
            teacher = self.teacher_head(teacher_images).float()
            patch_targets = (self.teacher_patch_head or self.teacher_head)(teacher_patches).float()
        student = self.head(student_images).float()
        patch_scores = (self.patch_head or self.head)(seen.tokens).float()
        temperature = self.temperature_at(self.global_step) if self.training else self.teacher_temperature
        logs = self._signals(teacher, temperature)
        logs["agreement"] = cosine_similarity(student_images[:n_rows].detach(), teacher_images[:n_rows]).mean().float()
        with torch.autocast(student.device.type, enabled=False):
            images = self.loss(list(teacher.split(n_rows)), list(student.split(n_rows)), teacher_temp=temperature)
            weights = seen.weights / (n_global * n_rows)
            patches = self.patch_loss(patch_targets, patch_scores, weights, temperature)
            loss = images + self.patch_weight * patches
            logs |= {"loss_images": images.detach(), "loss_patches": patches.detach()}
            if self.koleo_weight:
                global_images = student_images[: n_global * n_rows].float()
                spread = torch.stack([koleo(view) for view in torch.split(global_images, n_rows)]).sum()
                loss = loss + self.koleo_weight * spread
                logs["loss_koleo"] = spread.detach()
        return self.with_diversity(StepOutput(loss, student_images[:n_rows].detach().float(), logs), views)

    def _student(self, batch: ChannelBatch) -> tuple[Tensor, Patches]:
        """Embed global views of which patches are hidden; return the images, (R, D), and the hidden patches."""
        strategy = self.encoder.channels
        images, rows, hidden_patches = [], [], []
        parts = strategy.sequences(batch)
        masks = hidden_in_blocks(
            batch, parts, self.mask_probability, self.mask_ratio, together=self.mask_channels == "together"
        )
        for part, hidden in zip(parts, masks, strict=True):
            masked = (self.mask_token + part.places).to(part.tokens.dtype)
            tokens = strategy.encode_at(torch.where(hidden[..., None], masked, part.tokens), part.coordinates)
            weights = (1.0 / hidden.sum(1, keepdim=True).clamp(min=1)).expand(hidden.shape)
            patches = tokens[:, strategy.n_prefix :]
            hidden_patches.append(Patches(patches[hidden], _places(part, batch)[hidden], weights[hidden]))
            images.append(tokens[:, 0])
            rows.append(part.rows)
        tokens, places, weights = (torch.cat(values) for values in zip(*hidden_patches, strict=True))
        return torch.cat(images)[torch.cat(rows).argsort()], Patches(tokens, places, weights)

    def _teacher(self, batch: ChannelBatch, places: Tensor) -> tuple[Tensor, Tensor]:
        """Embed global views; return the images, (R, D), and the patches at some places, (M, D)."""
        strategy = self.teacher_encoder.channels
        images, rows, patches, theirs = [], [], [], []
        for part in strategy.sequences(batch):
            tokens = strategy.encode_at(part.tokens, part.coordinates)
            images.append(tokens[:, 0])
            rows.append(part.rows)
            patches.append(tokens[:, strategy.n_prefix :].flatten(0, 1))
            theirs.append(_places(part, batch).flatten())
        known = torch.cat(theirs)
        order = known.argsort()
        found = order[torch.searchsorted(known[order], places).clamp(max=len(order) - 1)]
        if not torch.equal(known[found], places):
            raise ConfigError(
                f"{type(strategy).__name__} gives the student patches that the teacher has not; in evaluation mode "
                "`sequences` must leave out nothing."
            )
        return torch.cat(images)[torch.cat(rows).argsort()], torch.cat(patches)[found]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the learning rate of this step, by layers."""
        super().on_before_optimizer_step(optimizer)
        scale_rates(optimizer)

    def before_update(self, step: int) -> None:
        """Hold the last layers of the heads still in the first epochs."""
        super().before_update(step)
        if self.patch_head is not None and self.current_epoch < self.freeze_last_layer_epochs:
            for parameter in self.patch_head.last_layer.parameters():
                parameter.grad = None

    def after_update(self, step: int) -> None:
        """Move the teacher and the centres."""
        super().after_update(step)
        if self.patch_head is not None and self.teacher_patch_head is not None:
            follow(self.teacher_patch_head, self.patch_head, self.momentum_at(step))
        self.patch_loss.move_center()


def _places(part: Sequences, batch: ChannelBatch) -> Tensor:
    """One number for row, plane and patch of every token, (B, T); a token of all planes counts as one of the first."""
    plane = part.planes.gather(1, part.channels.clamp(min=0))
    return (part.rows[:, None] * batch.n_planes + plane) * (part.grid[0] * part.grid[1]) + part.patches


def _own_prototypes(patch_head: str, n_patch_prototypes: int | None, n_prototypes: int) -> int | None:
    """Width of the patches' own head, or None where they share that of images."""
    if patch_head not in ("shared", "own"):
        raise ConfigError(f"dinov2: patch_head='{patch_head}' is not known; it is 'shared' or 'own'.")
    if patch_head == "own":
        return n_patch_prototypes or n_prototypes
    if n_patch_prototypes is not None:
        raise ConfigError(
            f"dinov2: n_patch_prototypes={n_patch_prototypes} has no effect with patch_head=shared; "
            "set patch_head to own, or n_patch_prototypes to null."
        )
    return None


def _check(weight: float, probability: float, ratio: tuple[float, float], channels: str) -> None:
    if not weight > 0:
        raise ConfigError(f"dinov2: patch_weight={weight} has to be above 0; without patches take the method dino.")
    if not 0 < probability <= 1:
        raise ConfigError(f"dinov2: mask_probability={probability} has to be above 0 and at most 1.")
    if not 0 < ratio[0] <= ratio[1] < 1:
        raise ConfigError(
            f"dinov2: mask_ratio={list(ratio)} has to be two numbers above 0 and below 1, the smaller first: "
            "some is hidden and some is left."
        )
    if channels not in ("together", "apart"):
        raise ConfigError(f"dinov2: mask_channels='{channels}' is not known; it is 'together' or 'apart'.")
