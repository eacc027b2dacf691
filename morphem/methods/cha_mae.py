"""ChA-MAEViT: a masked autoencoder that loses whole channels as well as patches, guided by labels where there are some.

Its parts are plug-ins of their own: the channel strategy `memory_fusion` over `channel_attention` has its memory tokens
and hybrid token fusion, `MaskRecipe` its dynamic channel-patch masking, `DecoderRecipe(identity="places")` its
channel-aware decoder. Without labels, `mae` with these is the method. This one adds the term of the labels.

Source: Pham et al. 2025, https://arxiv.org/abs/2503.19331; the defaults are those of configs/ in
chaudatascience/cha_mae_vit at bb8de98 and 483c536: alternating masks, 0.99 of reconstruction (0.99 of normalised
pixels, 0.01 of Fourier magnitudes) and 0.01 of proxies at a temperature of 0.11, lr 4e-4 for any batch (64 to 128),
weight decay 5e-5, 5 epochs of warm-up, cosine to 1e-5, 100 epochs; gradients are clipped at norm 1
(`trainer.gradient_clip_val: 1.0`).
Differs from them: a mask that loses channels loses at least one; an image of one channel loses patches instead; masks
are drawn for each image, not for a batch; Fourier magnitudes are those of patches on every grid; images without a label
count in the reconstruction alone; DiChaViT's two diversity terms are off unless `diversity` is given.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor

from morphem.channels.base import ChannelStrategy
from morphem.channels.memory_fusion import MemoryFusion
from morphem.data.view_recipe import ViewRecipe
from morphem.data.views import MultiCrop
from morphem.decoders import DecoderRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.losses.classes import ProxyScores, class_loss
from morphem.losses.reconstruction import LossRecipe
from morphem.masking import MaskRecipe
from morphem.methods.diversity import DiversityRecipe
from morphem.methods.labelled import LabelledMethod
from morphem.methods.mae import MAE, several_channels
from morphem.methods.supervised import ScaledLinear
from morphem.normalizers import SelfNormalize
from morphem.optimizers import AdamWRecipe
from morphem.types import ChannelBatch, StepOutput


class ChaMAE(MAE, LabelledMethod):
    """Reconstruct images that lost patches or whole channels, and tell their classes from what is left.

    Args:
        encoder: What is trained; its channel strategy puts all channels of an image into one sequence. The published
            one is `memory_fusion` over `channel_attention`.
        views: Makes the views; published: one. The loss is the mean over all.
        label: Column of `data.labels` to train on; may be left out where there is one.
        classes: Left out: the data say which classes there are. A checkpoint fills it in.
        masks: Kinds of masks; an image gets one of them. Null takes patches or whole channels in turn, equally often,
            at a ratio of 0.75; the other published choice is both at once: `{ratio: 0.25, channels: true}`.
        decoder: How patches are reconstructed; null takes two blocks of the encoder's width with 16 heads (as many as
            divide it), over the encoder's own positions and channel embeddings.
        loss: What reconstructions are judged by; null takes the published terms.
        head: What scores the classes: a trained vector for each (`proxy`, CHAMMI), or a `linear` layer (JUMP-CP; there
            two layers).
        label_weight: Share of the labels in the loss, above 0 and below 1; the rest is reconstruction's.
        temperature: Above 0; scores are divided by it. Published: 0.11 with proxies, 5 with the linear layer.
        diversity: Terms that keep tokens and channel types apart (DiChaViT); null for none. Published for CHAMMI:
            `{token_weight: 0.001, within: 0.5, across: 1, channel_weight: 0.0001, channel_temperature: 0.1,
            channel_among: vocabulary}`.
        lr: Peak learning rate for `lr_per_images` images in a global batch.
        lr_per_images: Global batch size to which `lr` belongs; null takes `lr` as it is.
        min_lr: Learning rate at the end of the run.
        warmup_epochs: Epochs over which the learning rate rises from 0.
        weight_decay: At the start of the run; biases and one-dimensional parameters have none.
        weight_decay_end: At its end; null keeps it constant.
        betas: Of AdamW.
        clip_per_tensor: Largest gradient norm of each parameter tensor; null for none.
        seed: Seed of stochastic depth and of the head's first weights.

    Raises:
        ConfigError: If a number is out of its range, a mask hides nothing or everything, the decoder could not tell
            channels apart, or there is one class alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        views: MultiCrop,
        label: str | None = None,
        classes: list[str] | None = None,
        masks: list[MaskRecipe] | None = None,
        decoder: DecoderRecipe | None = None,
        loss: LossRecipe | None = None,
        head: Literal["proxy", "linear"] = "proxy",
        label_weight: float = 0.01,
        temperature: float = 0.11,
        diversity: DiversityRecipe | None = None,
        lr: float = 4e-4,
        lr_per_images: int | None = None,
        min_lr: float = 1e-5,
        warmup_epochs: float = 5.0,
        weight_decay: float = 5e-5,
        weight_decay_end: float | None = None,
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
        LabelledMethod.__init__(self, encoder, views, recipe, label, classes, seed=seed)
        if head not in ("linear", "proxy"):
            raise ConfigError(f"cha_mae: head='{head}' is not known; it is 'proxy' or 'linear'.")
        if not 0 < label_weight < 1:
            raise ConfigError(
                f"cha_mae: label_weight={label_weight} has to be above 0 and below 1; without labels take mae."
            )
        if not temperature > 0:
            raise ConfigError(f"cha_mae: temperature={temperature} has to be above 0.")
        self.keep_channels_apart(diversity)
        self.head_kind = head
        self.label_weight = label_weight
        self.temperature = temperature
        self.prepare(
            dynamic_masks() if masks is None else masks,
            decoder or channel_aware_decoder(encoder.embed_dim),
            loss or LossRecipe(normalize_patches=True, pixel_weight=0.99, fourier_weight=0.01),
        )
        self.start_with_given_classes()

    @property
    def _name(self) -> str:
        return "cha_mae"

    @classmethod
    def compatible(cls, strategy: ChannelStrategy) -> str | None:
        """Return why the method cannot work with a channel strategy, or None where it can."""
        if (reason := super().compatible(strategy)) is not None:
            return reason
        if not several_channels(strategy):
            return "its sequences have no tokens of several channels, so no channel can be hidden; take mae."
        return None

    @classmethod
    def tiny(cls, encoder: Encoder | None = None) -> Self:
        """One view of 32 px and the classes of the tiny batch; memory tokens over channel attention where not told."""
        encoder = encoder or Encoder(MemoryFusion.tiny(), SelfNormalize(), input_size_px=32)
        return cls(
            encoder,
            MultiCrop([ViewRecipe(count=1, size_px=32, area=(0.9, 1.0), aspect=(0.9, 1.1))]),
            classes=["first", "second"],
            decoder=DecoderRecipe(identity="types", width=32, depth=1, n_heads=2),
            lr=3e-3,
            warmup_epochs=0,
        )

    def build_head(self, n_classes: int) -> None:
        """Make the layer that scores classes.

        Args:
            n_classes: K.
        """
        kind = ProxyScores if self.head_kind == "proxy" else ScaledLinear
        self.head = kind(self.encoder.embed_dim, n_classes, self.temperature)

    def step(self, views: list[ChannelBatch]) -> StepOutput:
        """Reconstruct what is hidden, and score the classes by what is not."""
        reconstruction, embeddings, logs = self.reconstruct(views)
        labels = torch.cat([self.row_labels(view) for view in views])
        scores = self.head(torch.cat(embeddings)).float()
        with torch.autocast(scores.device.type, enabled=False):
            told, n_rows = class_loss(scores, labels, joint=self.training)
        loss = (1.0 - self.label_weight) * reconstruction + self.label_weight * told
        right = (scores.detach().argmax(1) == labels).sum()  # -1 is never the largest
        further: dict[str, Tensor] = {
            "reconstruction": reconstruction.detach(),
            "classes": told.detach(),
            "accuracy": right / n_rows.clamp(min=1),
            "counted": n_rows.float(),
            "unlabelled": (self.row_labels(views[0]) < 0).sum().float(),
        }
        return self.with_diversity(StepOutput(loss, embeddings[0].detach(), {**logs, **further}), views)


def dynamic_masks() -> Sequence[MaskRecipe]:
    """Return the published kinds of masks: three quarters of the patches, or whole channels, equally often."""
    return [MaskRecipe(), MaskRecipe(patches=None, channels=True)]


def channel_aware_decoder(embed_dim: int) -> DecoderRecipe:
    """Return the published decoder: two blocks of the encoder's width, over the encoder's places.

    Args:
        embed_dim: D of the encoder, a multiple of 4.
    """
    n_heads = next(heads for heads in range(16, 0, -1) if embed_dim % heads == 0)
    return DecoderRecipe(identity="places", width=embed_dim, depth=2, n_heads=n_heads)
