"""VICReg: two views agree, while every feature keeps its variance and no two features say the same.

Source: Bardes, Ponce and LeCun 2022, https://arxiv.org/abs/2105.04906; the loss and the projector are lightly's.
Differs from it: AdamW instead of LARS; a projector of 2,048 units instead of 8,192, for small data.
"""

from typing import Self

import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.methods.base import Method
from morphem.normalizers import SelfNormalize
from morphem.optimizers import AdamWRecipe
from morphem.types import ChannelBatch, StepOutput


class VICReg(Method):
    """Variance, invariance and covariance of the projections of two views.

    Args:
        encoder: What is trained.
        views: Two views of each crop.
        projector_dim: Width of the projector's three layers. The paper: 8192.
        invariance: Weight of the distance between two views. The paper: 25.
        variance: Weight of the hinge on each feature's standard deviation. The paper: 25.
        covariance: Weight of the covariance between features. The paper: 1.
        lr: Peak learning rate for a global batch of 256 images.
        warmup_epochs: Epochs over which the learning rate rises from 0.
        weight_decay: At least 0.
        seed: Seed of dropout and stochastic depth.

    Raises:
        ConfigError: If there are not exactly two views.
    """

    def __init__(
        self,
        encoder: Encoder,
        views: MultiCrop,
        projector_dim: int = 2048,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        lr: float = 1e-3,
        warmup_epochs: float = 1.0,
        weight_decay: float = 1e-4,
        seed: int = 0,
    ) -> None:
        recipe = AdamWRecipe(lr=lr, warmup_epochs=warmup_epochs, weight_decay=weight_decay, weight_decay_end=None)
        super().__init__(encoder, views, recipe, seed)
        if views.n_views != 2:
            raise ConfigError(
                f"vicreg: compares two views, but views.recipes makes {views.n_views}; set one count to 2."
            )
        self.projector = VICRegProjectionHead(encoder.embed_dim, projector_dim, projector_dim)
        self.loss = VICRegLoss(invariance, variance, covariance, gather_distributed=torch.distributed.is_available())

    def step(self, views: list[ChannelBatch]) -> StepOutput:
        """Compare the projections of two views."""
        first, second = (self.encoder(view) for view in views)  # (M, D) each
        projections = [self.projector(embedding) for embedding in (first, second)]  # (M, projector_dim) each
        with torch.autocast(first.device.type, enabled=False):
            loss = self.loss(*(projection.float() for projection in projections))
        return StepOutput(loss, first.detach().float(), {})

    @classmethod
    def tiny(cls, encoder: Encoder | None = None) -> Self:
        """Return the smallest instance that works; with a bag of channels where no encoder is given."""
        encoder = encoder or Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=16)
        return cls(encoder, MultiCrop([ViewRecipe(count=2, size_px=16)]), projector_dim=16, lr=3e-3)
