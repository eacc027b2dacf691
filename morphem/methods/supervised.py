"""Supervised training: classes of images, by cross-entropy over a linear layer or by proxies.

Source: ChannelViT, Bao et al. 2024, https://arxiv.org/abs/2309.16108 (cross-entropy; the defaults are its own, of
insitro/ChannelViT: AdamW, 5e-4 per 256 images to 1e-6, 10 epochs of warm-up, weight decay 0.04 to 0.4). The
fixed-channel top line of CHAMMI, Chen et al. 2023, https://arxiv.org/abs/2310.19224, is `head: proxy` with the numbers
of checkpoint_configs/fixed_channels_finetuned in chaudatascience/channel_adaptive_models at 5e7895e: temperature 0.3,
lr 1e-4 for batches of 128, weight decay 5e-5, 3 epochs of warm-up, 15 epochs, cosine to 1e-6, one view of 224 px.
Differs from it: warm-up starts at 0, not at 1e-5; biases and one-dimensional parameters are not decayed.
"""

from typing import Literal, Self

import torch
from torch import Tensor, nn

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.losses.classes import ProxyScores, class_loss
from morphem.methods.diversity import DiversityRecipe
from morphem.methods.labelled import LabelledMethod
from morphem.normalizers import SelfNormalize
from morphem.optimizers import AdamWRecipe
from morphem.types import ChannelBatch, StepOutput


class Supervised(LabelledMethod):
    """Tell the class of each image (of each channel plane, with a bag of channels).

    Args:
        encoder: What is trained.
        views: Makes the views; the loss is over all of them. One view is enough.
        label: Column of `data.labels` to train on; may be left out where there is one.
        classes: Left out: the data say which classes there are. A checkpoint fills it in.
        head: What scores the classes: a `linear` layer, or a trained vector for each class (`proxy`).
        temperature: Above 0; scores are divided by it. The CHAMMI baselines take 0.3 with proxies.
        label_smoothing: Share of the target that is spread over all classes, 0 to below 1; none in validation.
        diversity: Terms that keep tokens and channel types apart (DiChaViT); null for none.
        lr: Peak learning rate for `lr_per_images` images in a global batch.
        lr_per_images: Global batch size to which `lr` belongs; null takes `lr` as it is.
        min_lr: Learning rate at the end of the run.
        warmup_epochs: Epochs over which the learning rate rises from 0.
        weight_decay: At the start of the run; biases and one-dimensional parameters have none.
        weight_decay_end: At its end; null keeps it constant.
        betas: Of AdamW.
        clip_per_tensor: Largest gradient norm of each parameter tensor; null for none.
        seed: Seed of dropout, stochastic depth and of the head's first weights.

    Raises:
        ConfigError: If a number is out of its range, or there is one class alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        views: MultiCrop,
        label: str | None = None,
        classes: list[str] | None = None,
        head: Literal["linear", "proxy"] = "linear",
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
        diversity: DiversityRecipe | None = None,
        lr: float = 5e-4,
        lr_per_images: int | None = 256,
        min_lr: float = 1e-6,
        warmup_epochs: float = 10.0,
        weight_decay: float = 0.04,
        weight_decay_end: float | None = 0.4,
        betas: tuple[float, float] = (0.9, 0.999),
        clip_per_tensor: float | None = None,
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
        super().__init__(encoder, views, recipe, label, classes, seed=seed)
        self.keep_channels_apart(diversity)
        if head not in ("linear", "proxy"):
            raise ConfigError(f"{self._name}: head='{head}' is not known; it is 'linear' or 'proxy'.")
        if not temperature > 0:
            raise ConfigError(f"{self._name}: temperature={temperature} has to be above 0.")
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"{self._name}: label_smoothing={label_smoothing} has to be at least 0 and below 1.")
        self.head_kind = head
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.start_with_given_classes()

    @classmethod
    def tiny(cls, encoder: Encoder | None = None) -> Self:
        """Two views of 32 px and the classes of the tiny batch; a bag of channels where not told."""
        return cls(
            encoder or Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32),
            MultiCrop([ViewRecipe(count=2, size_px=32, area=(0.4, 1.0))]),
            classes=["first", "second"],
            lr=1e-3,
            lr_per_images=None,
            warmup_epochs=0,
        )

    def build_head(self, n_classes: int) -> None:
        """Make the layer that scores classes.

        Args:
            n_classes: K.
        """
        width = self.encoder.embed_dim
        self.head = (
            ProxyScores(width, n_classes, self.temperature)
            if self.head_kind == "proxy"
            else ScaledLinear(width, n_classes, self.temperature)
        )

    def step(self, views: list[ChannelBatch]) -> StepOutput:
        """Score the classes of all rows of all views."""
        embeddings, labels, first = self.embed_labelled(views)
        scores = self.head(embeddings).float()
        with torch.autocast(scores.device.type, enabled=False):
            smoothing = self.label_smoothing if self.training else 0.0
            loss, n_rows = class_loss(scores, labels, smoothing=smoothing, joint=self.training)
        right = (scores.detach().argmax(1) == labels).sum()  # -1 is never the largest
        logs = {
            "accuracy": right / n_rows.clamp(min=1),
            "counted": n_rows,
            "unlabelled": (labels[:first] < 0).sum(),
        }
        return self.with_diversity(StepOutput(loss, embeddings[:first].detach().float(), _floats(logs)), views)


class ScaledLinear(nn.Linear):
    """A linear layer whose scores are divided by a temperature.

    Args:
        input_dim: D of the embeddings.
        n_classes: K.
        temperature: Above 0.
    """

    def __init__(self, input_dim: int, n_classes: int, temperature: float) -> None:
        super().__init__(input_dim, n_classes)
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
        self.temperature = temperature

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        """Score embeddings, (M, D), against the classes, (M, K)."""
        return super().forward(input) / self.temperature


def _floats(logs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in logs.items()}
