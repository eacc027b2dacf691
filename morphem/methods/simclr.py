"""SimCLR: two views of an image find each other among all images of the batch.

Source: Chen et al. 2020, https://arxiv.org/abs/2002.05709; the defaults are those of the bag-of-channels training of
CaicedoLab/CHAMMI-75 at b84a4ec (models/simclr).
Differs from CHAMMI-75: its code has no projection head (`head_layers: 0`), the paper that it follows has one; its code
decays weights by 1e-4 within Adam's gradient, its paper says 0.04, which is taken here, as AdamW; views are made in
float32 on the training device.
"""

from typing import Self

import torch
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.losses.contrast import nt_xent
from morphem.methods.base import Method
from morphem.methods.dino import embed_views
from morphem.methods.diversity import DiversityRecipe
from morphem.normalizers import SelfNormalize
from morphem.optimizers import AdamWRecipe
from morphem.types import ChannelBatch, StepOutput


class SimCLR(Method):
    """Contrast: the other view of an image is told from all other images, over all devices.

    What is contrasted is what the channel strategy embeds: images, or with a bag of channels channel planes, where
    the planes of one image count as different things. There is no substitute for a large batch: accumulating small
    ones adds gradients, but nothing to tell apart.

    Args:
        encoder: What is trained.
        views: Makes two views; CHAMMI-75's have 224 px, an area of 0.2 to 1, both flips, and a blur (kernel 11, sigma
            0.1 to 2) in half of them; Kim et al. take plain crops with flips and their 'Color'.
        temperature: Above 0; lower looks harder at the most similar other images. CHAMMI-75 takes 0.1, Kim et al. 0.2.
        head_layers: Linear layers of the projection head, at least 2, with ReLU between; 0 for no head, as in
            CHAMMI-75's code, which contrasts the embedding itself. The head is left out of the exported encoder.
        head_hidden_dim: Width between the layers. Chen et al. take 2048, Kim et al. 512.
        head_output_dim: Width of what is compared. Chen et al. and Kim et al. take 128.
        head_batch_norm: Whether every layer of the head is followed by a normalisation over the batch, as in the code
            of Chen et al.; on several devices it needs `trainer.sync_batchnorm: true`.
        diversity: Terms that keep tokens and channel types apart (DiChaViT); null for none.
        lr: Peak learning rate; CHAMMI-75 takes 5e-5 for a global batch of 2,688.
        lr_per_images: Global batch size to which `lr` belongs; null takes `lr` as it is.
        min_lr: Learning rate at the end of the run.
        warmup_epochs: Epochs over which the learning rate rises from 0.
        weight_decay: At the start of the run; biases and one-dimensional parameters have none.
        weight_decay_end: At its end; null keeps it constant.
        betas: Of AdamW.
        clip_per_tensor: Largest gradient norm of each parameter tensor; null for none.
        seed: Seed of dropout and stochastic depth.

    Raises:
        ConfigError: If a number is out of its range, there are not exactly two views, or a view drops channels where
            each is embedded alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        views: MultiCrop,
        temperature: float = 0.1,
        head_layers: int = 2,
        head_hidden_dim: int = 2048,
        head_output_dim: int = 128,
        head_batch_norm: bool = False,
        diversity: DiversityRecipe | None = None,
        lr: float = 5e-5,
        lr_per_images: int | None = None,
        min_lr: float = 0.0,
        warmup_epochs: float = 10.0,
        weight_decay: float = 0.04,
        weight_decay_end: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
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
        super().__init__(encoder, views, recipe, seed=seed)
        self.keep_channels_apart(diversity)
        _check_views(encoder, views)
        if not temperature > 0:
            raise ConfigError(f"simclr: temperature={temperature} has to be above 0.")
        self.temperature = temperature
        self.head = _head(encoder.embed_dim, head_layers, head_hidden_dim, head_output_dim, head_batch_norm)

    @classmethod
    def tiny(cls, encoder: Encoder | None = None) -> Self:
        """Two views of 32 px and a head of 16 units; a bag of channels where not told."""
        return cls(
            encoder or Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32),
            MultiCrop([ViewRecipe(count=2, size_px=32, area=(0.2, 1.0))]),
            head_hidden_dim=16,
            head_output_dim=16,
            lr=1e-3,
            warmup_epochs=0,
        )

    def on_train_start(self) -> None:
        """Refuse a head whose statistics would be those of one device's share of the batch.

        Raises:
            ConfigError: If the head normalises over the batch and the devices do not share their statistics.
        """
        super().on_train_start()
        apart = any(isinstance(part, nn.BatchNorm1d) for part in self.head.modules())
        if apart and self.trainer.world_size > 1:
            raise ConfigError(
                f"simclr: head_batch_norm=true on {self.trainer.world_size} devices needs trainer.sync_batchnorm=true, "
                "otherwise each device normalises by itself and tells its own images by that."
            )

    def step(self, views: list[ChannelBatch]) -> StepOutput:
        """Compare the projections of two views, over all processes."""
        embeddings = embed_views(self.encoder, views)  # (2, M, D)
        projections: Tensor = self.head(embeddings.flatten(0, 1)).float().unflatten(0, embeddings.shape[:2])
        with torch.autocast(projections.device.type, enabled=False):
            contrast = nt_xent(projections[0], projections[1], self.temperature)
        if self.training and contrast.n_rows < 2:
            raise ConfigError(
                "simclr: the global batch holds one image, which leaves nothing to tell it from; "
                "raise data.batch_size (accumulating batches does not help)."
            )
        logs = {"alignment": contrast.alignment, "contrast_accuracy": contrast.accuracy}
        return self.with_diversity(StepOutput(contrast.loss, embeddings[0].detach().float(), logs), views)


def _head(input_dim: int, n_layers: int, hidden_dim: int, output_dim: int, batch_norm: bool) -> nn.Module:
    if n_layers == 0:
        if batch_norm:
            raise ConfigError("simclr: head_batch_norm has no effect with head_layers=0; leave it out.")
        return nn.Identity()
    if n_layers < 2 or hidden_dim < 1 or output_dim < 1:
        raise ConfigError(
            f"simclr: head_layers={n_layers} has to be 0 or at least 2, and head_hidden_dim={hidden_dim} and "
            f"head_output_dim={output_dim} at least 1."
        )
    head: nn.Module = SimCLRProjectionHead(input_dim, hidden_dim, output_dim, n_layers, batch_norm)
    return head


def _check_views(encoder: Encoder, views: MultiCrop) -> None:
    if views.n_views != 2:
        raise ConfigError(
            f"simclr compares two views of an image, but views.recipes makes {views.n_views}; "
            "give one recipe of count 2."
        )
    if encoder.channels.per_channel and any(recipe.channel_drop for recipe in views.recipes):
        raise ConfigError(
            "views.recipes.channel_drop has no meaning where each channel plane is embedded alone "
            f"({type(encoder.channels).__name__}); remove it."
        )
