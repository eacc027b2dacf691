"""Supervised contrast: images of one class are brought together and told from all others, over all devices.

Source: Khosla et al. 2020, https://arxiv.org/abs/2004.11362; the defaults are those of SubCell, Gupta et al. 2024,
https://doi.org/10.1101/2024.12.06.627299, whose ViT-ProtS model is trained in this way alone (label: the protein;
112 proteins of 8 cells in a batch, 300 epochs).
Differs from them: which classes meet in a batch is left to the data stream (`data.crops_per_image` gives several crops
of one image); rows without a label are neither contrasted nor told from.
"""

from typing import Self

import torch
from lightly.models.modules.heads import SimCLRProjectionHead

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.losses.classes import supervised_contrast
from morphem.methods.diversity import DiversityRecipe
from morphem.methods.labelled import LabelledMethod
from morphem.normalizers import SelfNormalize
from morphem.optimizers import AdamWRecipe
from morphem.types import ChannelBatch, StepOutput


class SupCon(LabelledMethod):
    """Contrast by label: all views of all images of a class are positives for each other.

    With a bag of channels every channel plane is contrasted, and planes of one image are positives, because they have
    its label.

    Args:
        encoder: What is trained.
        views: Makes at least two views, so that every labelled image has a positive.
        label: Column of `data.labels` to train on; may be left out where there is one.
        classes: Left out: the data say which classes there are. A checkpoint fills it in.
        temperature: Above 0; lower looks harder at the most similar other images. Khosla et al. and SubCell take 0.1.
        head_layers: Linear layers of the projection head, at least 2, with ReLU between. The head is left out of the
            exported encoder. Khosla et al. take 2.
        head_hidden_dim: Width between the layers. Khosla et al. take 2048.
        head_output_dim: Width of what is compared. Khosla et al. take 128.
        diversity: Terms that keep tokens and channel types apart (DiChaViT); null for none.
        lr: Peak learning rate for `lr_per_images` images in a global batch.
        lr_per_images: Global batch size to which `lr` belongs; null takes `lr` as it is.
        min_lr: Learning rate at the end of the run.
        warmup_epochs: Epochs over which the learning rate rises from 0.
        weight_decay: At the start of the run; biases and one-dimensional parameters have none.
        weight_decay_end: At its end; null keeps it constant.
        betas: Of AdamW.
        clip_per_tensor: Largest gradient norm of each parameter tensor; null for none.
        seed: Seed of dropout and stochastic depth.

    Raises:
        ConfigError: If a number is out of its range, there are fewer than two views, or there is one class alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        views: MultiCrop,
        label: str | None = None,
        classes: list[str] | None = None,
        temperature: float = 0.1,
        head_layers: int = 3,
        head_hidden_dim: int = 8192,
        head_output_dim: int = 512,
        diversity: DiversityRecipe | None = None,
        lr: float = 1e-4,
        lr_per_images: int | None = 256,
        min_lr: float = 0.0,
        warmup_epochs: float = 5.0,
        weight_decay: float = 0.05,
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
        super().__init__(encoder, views, recipe, label, classes, seed=seed)
        self.keep_channels_apart(diversity)
        if views.n_views < 2:
            raise ConfigError(
                "supcon needs at least 2 views, so that every image has a positive; views.recipes makes one."
            )
        if not temperature > 0:
            raise ConfigError(f"supcon: temperature={temperature} has to be above 0.")
        for key, value, least in (
            ("head_layers", head_layers, 2),
            ("head_hidden_dim", head_hidden_dim, 1),
            ("head_output_dim", head_output_dim, 1),
        ):
            if value < least:
                raise ConfigError(f"supcon: {key}={value} has to be at least {least}.")
        self.temperature = temperature
        self.head = SimCLRProjectionHead(encoder.embed_dim, head_hidden_dim, head_output_dim, head_layers, False)
        self.start_with_given_classes()

    @classmethod
    def tiny(cls, encoder: Encoder | None = None) -> Self:
        """Two views of 32 px, a head of 16 units, the classes of the tiny batch; a bag of channels where not told."""
        return cls(
            encoder or Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32),
            MultiCrop([ViewRecipe(count=2, size_px=32, area=(0.4, 1.0))]),
            classes=["first", "second"],
            head_hidden_dim=16,
            head_output_dim=16,
            head_layers=2,
            lr=1e-3,
            lr_per_images=None,
            warmup_epochs=0,
        )

    def build_head(self, n_classes: int) -> None:
        """Leave the head as it is: nothing in it belongs to a class.

        Args:
            n_classes: K.
        """

    def step(self, views: list[ChannelBatch]) -> StepOutput:
        """Contrast the projections of all labelled rows of all views, over all processes."""
        embeddings, labels, first = self.embed_labelled(views)
        projections = self.head(embeddings).float()
        with torch.autocast(projections.device.type, enabled=False):
            loss, n_rows = supervised_contrast(projections, labels, self.temperature, joint=self.training)
        logs = {"counted": n_rows.float(), "unlabelled": (labels[:first] < 0).sum().float()}
        return self.with_diversity(StepOutput(loss, embeddings[:first].detach().float(), logs), views)
