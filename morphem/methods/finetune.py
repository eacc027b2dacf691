"""Fine-tuning: a pretrained encoder, frozen or with lower rates for its early layers, and a head trained on labels.

Source: layer-wise rates, Clark et al. 2020, https://arxiv.org/abs/2003.10555, and their use with vision transformers in
He et al. 2022, https://arxiv.org/abs/2111.06377; the defaults are those of FINETUNE.md and main_finetune.py in
facebookresearch/mae at 2f170f2 for ViT-B: 5e-4 per 256 images, layer decay 0.65, weight decay 0.05, 5 epochs of
warm-up, label smoothing 0.1, 100 epochs.
`objective: triplet` with `train: head` is the fine-tuning of Campfire, Hurry et al. 2025: frozen encoder, two layers of
1024 and 128, several tiles of each well averaged, wells of one knock-out drawn together, 500 epochs.
Differs from them: no mixing of images and no random erasing. Campfire published no code for this: the margin is
FaceNet's (https://arxiv.org/abs/1503.03832), the hardest wells of a batch make the triplets, ReLU stands between the
layers, and wells are averaged after the head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError, unknown_name
from morphem.layerwise import LayerwiseRecipe, scale_rates
from morphem.losses.classes import LabelLoss, ProxyScores, class_loss, group_means, triplet_loss
from morphem.losses.gathering import gather_rows
from morphem.methods.labelled import LabelledMethod
from morphem.methods.supervised import ScaledLinear
from morphem.normalizers import SelfNormalize
from morphem.optimizers import AdamWRecipe
from morphem.spec import to_spec
from morphem.types import ChannelBatch, StepOutput
from morphem.weights import inherited, load_strictly

_OBJECTIVES = ("cross_entropy", "proxy", "triplet")


@dataclass(frozen=True)
class FinetuneRecipe(LayerwiseRecipe):
    """Rates that fall from the last layer to the first, and grow in proportion to the batch."""

    patch_lr_scale: float = 1.0

    def peak_lr(self, global_batch: int | None) -> float:
        """Return the peak learning rate for a global batch size, in proportion to it."""
        return AdamWRecipe.peak_lr(self, global_batch)


class Finetune(LabelledMethod):
    """Train a head on a pretrained encoder, and the encoder with it or not.

    The head stays in the checkpoint; what is exported is the encoder.

    Args:
        encoder: Of the architecture of the weights, with the normaliser that they expect.
        views: Makes the views; the loss is over all of them. One view is enough.
        weights: The pretrained encoder, as `morphem.load` takes it: a name of the zoo, a folder, a checkpoint, or
            `owner/name` on the hub. They are loaded when training starts. May be left out where `encoder` came from
            `morphem.load` itself.
        new_parts: Beginnings of names of the encoder's tensors that the weights do not have and that start anew, such
            as a channel table on top of a bag of channels.
        label: Column of `data.labels` to train on; may be left out where there is one.
        classes: Left out: the data say which classes there are. A checkpoint fills it in.
        objective: `cross_entropy` over a linear layer, `proxy` (a trained vector for each class), or `triplet` over
            two layers.
        train: `all`: encoder and head. `head`: the encoder is frozen, and evaluated as in use.
        layer_decay: Rate of a block of the encoder as a share of that of the next, above 0 and up to 1; 0.65 where not
            given. Only with `train: all`.
        average_over: Column of `data.labels`, such as `experiment.well`: rows of one class and one value of it are
            averaged before triplets are made. Only with `triplet`.
        temperature: Above 0; scores are divided by it. ChannelViT and DiChaViT take 0.07 with proxies.
        margin: Above 0; of triplets, in distances between unit vectors.
        label_smoothing: Share of the target that is spread over all classes, 0 to below 1; none in validation.
        head_hidden_dim: Width of the hidden layer of the head of triplets.
        head_output_dim: Width of its output.
        lr: Peak learning rate for `lr_per_images` images in a global batch.
        lr_per_images: Global batch size to which `lr` belongs; null takes `lr` as it is.
        min_lr: Learning rate at the end of the run.
        warmup_epochs: Epochs over which the learning rate rises from 0.
        weight_decay: Constant; biases and one-dimensional parameters have none.
        betas: Of AdamW.
        clip_per_tensor: Largest gradient norm of each parameter tensor; null for none.
        seed: Seed of dropout, stochastic depth and of the head's first weights.

    Raises:
        ConfigError: If a setting is unknown, out of its range or without effect, or there is one class alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        views: MultiCrop,
        weights: str | None = None,
        new_parts: list[str] | None = None,
        label: str | None = None,
        classes: list[str] | None = None,
        objective: Literal["cross_entropy", "proxy", "triplet"] = "cross_entropy",
        train: Literal["all", "head"] = "all",
        layer_decay: float | None = None,
        average_over: str | None = None,
        temperature: float = 1.0,
        margin: float = 0.2,
        label_smoothing: float = 0.1,
        head_hidden_dim: int = 1024,
        head_output_dim: int = 128,
        lr: float = 5e-4,
        lr_per_images: int | None = 256,
        min_lr: float = 1e-6,
        warmup_epochs: float = 5.0,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        clip_per_tensor: float | None = None,
        seed: int = 0,
    ) -> None:
        recipe = FinetuneRecipe(
            lr=lr,
            lr_per_images=lr_per_images,
            min_lr=min_lr,
            warmup_epochs=warmup_epochs,
            weight_decay=weight_decay,
            weight_decay_end=None,
            betas=(betas[0], betas[1]),
            clip_per_tensor=clip_per_tensor,
            layer_decay=0.65 if layer_decay is None else layer_decay,
        )
        super().__init__(encoder, views, recipe, label, classes, seed=seed)
        self.weights = weights
        self.new_parts = tuple(new_parts or ())
        self.objective = objective
        self.frozen = train == "head"
        self.average_over = average_over
        self.group_number: int | None = None
        self.temperature = temperature
        self.margin = margin
        self.label_smoothing = label_smoothing
        self.head_widths = (head_hidden_dim, head_output_dim)
        self._check(train, layer_decay)
        if self.frozen:
            encoder.requires_grad_(False)
        self.start_with_given_classes()

    def _check(self, train: str, layer_decay: float | None) -> None:
        if self.objective not in _OBJECTIVES:
            raise ConfigError(f"finetune: objective='{self.objective}' is not one of {', '.join(_OBJECTIVES)}.")
        if train not in ("all", "head"):
            raise ConfigError(f"finetune: train='{train}' is not known; it is 'all' or 'head'.")
        if self.frozen and layer_decay is not None:
            raise ConfigError(f"finetune: layer_decay={layer_decay} has no effect with train='head'; leave it out.")
        if self.average_over is not None and self.objective != "triplet":
            raise ConfigError(
                f"finetune: average_over='{self.average_over}' has no effect with objective='{self.objective}'; "
                "leave it out, or use triplet."
            )
        if self.new_parts and self.weights is None:
            raise ConfigError("finetune: new_parts has no effect without weights; leave it out.")
        for key, value in {"temperature": self.temperature, "margin": self.margin}.items():
            if not value > 0:
                raise ConfigError(f"finetune: {key}={value} has to be above 0.")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"finetune: label_smoothing={self.label_smoothing} has to be at least 0 and below 1.")
        if min(self.head_widths) < 1:
            raise ConfigError(f"finetune: head_hidden_dim and head_output_dim {self.head_widths} have to be 1 or more.")

    @classmethod
    def tiny(cls, encoder: Encoder | None = None) -> Self:
        """Cross-entropy on one view of 32 px and the classes of the tiny batch; a bag of channels where not told."""
        encoder = encoder or Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32)
        encoder.origin = encoder.origin or {"model": "tiny"}
        return cls(
            encoder,
            MultiCrop([ViewRecipe(count=1, size_px=32, area=(0.4, 1.0))]),
            classes=["first", "second"],
            lr=3e-3,
            lr_per_images=None,
            warmup_epochs=0,
        )

    def build_head(self, n_classes: int) -> None:
        """Make the head.

        Args:
            n_classes: K.
        """
        width = self.encoder.embed_dim
        hidden, output = self.head_widths
        self.head: nn.Module
        if self.objective == "triplet":
            self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, output))
        else:
            kind = ScaledLinear if self.objective == "cross_entropy" else ProxyScores
            self.head = kind(width, n_classes, self.temperature)

    def setup(self, stage: str) -> None:
        """Take the classes from the data, and load the pretrained weights unless a checkpoint brings later ones.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            ConfigError: If labels are missing, there are no pretrained weights, or they expect another normaliser.
            WeightsError: If the weights cannot be read or do not fit.
        """
        super().setup(stage)
        columns: Mapping[str, Sequence[str]] = getattr(self.trainer.datamodule, "classes", None) or {}  # type: ignore[attr-defined]
        if self.average_over is not None and columns:
            if self.average_over not in columns:
                name = unknown_name("label in data.labels", self.average_over, columns)
                raise ConfigError(f"finetune: average_over: {name}")
            self.group_number = list(columns).index(self.average_over)
        if stage != "fit" or self.trainer.ckpt_path is not None:
            return
        if self.weights is not None:
            self.load_weights(self.weights)
        elif not self.encoder.origin:
            raise ConfigError(
                "finetune starts from a pretrained encoder, and this one is untrained; name one with model.weights, "
                "for example --model.weights runs/dino/encoder, or use supervised."
            )

    def load_weights(self, name: str) -> None:
        """Copy the weights of a pretrained encoder into this one.

        Args:
            name: As `morphem.load` takes it.

        Raises:
            ConfigError: If they expect another normaliser, or `new_parts` names what they have, or nothing.
            WeightsError: If they cannot be read or do not fit.
        """
        from morphem.zoo import load  # the zoo converts published checkpoints, which no other method needs

        pretrained = load(name)
        theirs, mine = to_spec(pretrained.normalizer), to_spec(self.encoder.normalizer)
        if theirs != mine:
            raise ConfigError(
                f"finetune: the weights '{name}' expect the input normaliser {theirs}, but the encoder has {mine}; "
                "give model.encoder.normalizer the same settings."
            )
        tensors, own = pretrained.state_dict(), self.encoder.state_dict()
        for part in self.new_parts:
            new = {key: value for key, value in own.items() if key.startswith(part) and key not in tensors}
            if not new:
                raise ConfigError(
                    f"finetune: new_parts names '{part}', but the encoder has no tensor of that name that the weights "
                    f"lack; its tensors: {', '.join(list(own)[:5])}, ..."
                )
            tensors.update(new)
        load_strictly(self.encoder, tensors, name)
        self.encoder.origin = dict(pretrained.origin)
        self.encoder.card = inherited(pretrained.card)  # a licence that restricts use stays with what is made of it

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of everything but a frozen encoder, which has no dropout and no stochastic depth."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def before_update(self, step: int) -> None:
        """Give each layer its own rate.

        Args:
            step: Optimizer steps taken before this one.
        """
        super().before_update(step)
        scale_rates(self.optimizers(use_pl_optimizer=False))  # type: ignore[arg-type]

    def step(self, views: list[ChannelBatch]) -> StepOutput:
        """Score the classes of all rows, or compare their distances."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            embeddings, labels, first = self.embed_labelled(views)
        output = self.head(embeddings).float()
        logs: dict[str, Tensor] = {"unlabelled": (labels[:first] < 0).sum().float()}
        with torch.autocast(output.device.type, enabled=False):
            if self.objective == "triplet":
                loss, n_rows = self._triplets(output, labels, views)
            else:
                smoothing = self.label_smoothing if self.training else 0.0
                loss, n_rows = class_loss(output, labels, smoothing=smoothing, joint=self.training)
                logs["accuracy"] = (output.detach().argmax(1) == labels).sum() / n_rows.clamp(min=1)
        logs["counted"] = n_rows.float()
        return StepOutput(loss, embeddings[:first].detach().float(), logs)

    def _triplets(self, output: Tensor, labels: Tensor, views: list[ChannelBatch]) -> LabelLoss:
        """Triplets of the rows of all processes, averaged over what `average_over` names."""
        if self.group_number is None:
            groups = torch.full_like(labels, -1)
        else:
            groups = torch.cat([self.row_labels(view, self.group_number) for view in views])
        about = torch.stack([labels, groups], 1)
        if self.training:  # each process computes the loss of all rows; gradients flow back to each
            output, about = gather_rows(output)[0], gather_rows(about)[0]
        return triplet_loss(*group_means(output, about[:, 0], about[:, 1]), self.margin)
