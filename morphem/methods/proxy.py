"""Proxies: each class has a trained vector, and images are drawn to that of their class.

Source: ProxyNCA++, Teh et al. 2020, https://arxiv.org/abs/2004.01113, as ChannelViT and DiChaViT (Pham and Plummer
2024, https://arxiv.org/abs/2405.16419) are trained on CHAMMI; the defaults are those of train_scripts.sh in
chaudatascience/diverse_channel_vit at 3ff783d: temperature 0.07, lr 4e-5 for batches of 64, 60 epochs. What that script
leaves out is of the CHAMMI baselines (chaudatascience/channel_adaptive_models at 5e7895e): weight decay 5e-5, 3 epochs
of warm-up, cosine to 1e-6.
Differs from them: no thin-plate-spline warps; warm-up starts at 0, not at 1e-5; biases and one-dimensional parameters
are not decayed. DiChaViT's two further losses, which keep tokens and channel embeddings apart, are `diversity`.
"""

from typing import Self

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.methods.diversity import DiversityRecipe
from morphem.methods.supervised import Supervised
from morphem.normalizers import SelfNormalize


class Proxy(Supervised):
    """Supervised training with proxies, by the numbers of the channel-adaptive transformers on CHAMMI.

    Args:
        encoder: What is trained.
        views: Makes the views; the loss is over all of them. One view is enough.
        label: Column of `data.labels` to train on; may be left out where there is one.
        classes: Left out: the data say which classes there are. A checkpoint fills it in.
        temperature: Above 0; squared distances are divided by it.
        diversity: Terms that keep tokens and channel types apart (DiChaViT); null for none.
        lr: Peak learning rate for `lr_per_images` images in a global batch.
        lr_per_images: Global batch size to which `lr` belongs; null takes `lr` as it is.
        min_lr: Learning rate at the end of the run.
        warmup_epochs: Epochs over which the learning rate rises from 0.
        weight_decay: At the start of the run; biases and one-dimensional parameters have none.
        weight_decay_end: At its end; null keeps it constant.
        betas: Of AdamW.
        clip_per_tensor: Largest gradient norm of each parameter tensor; null for none.
        seed: Seed of dropout, stochastic depth and of the first proxies.

    Raises:
        ConfigError: If a number is out of its range, or there is one class alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        views: MultiCrop,
        label: str | None = None,
        classes: list[str] | None = None,
        temperature: float = 0.07,
        diversity: DiversityRecipe | None = None,
        lr: float = 4e-5,
        lr_per_images: int | None = 64,
        min_lr: float = 1e-6,
        warmup_epochs: float = 3.0,
        weight_decay: float = 5e-5,
        weight_decay_end: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        clip_per_tensor: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            encoder,
            views,
            label=label,
            classes=classes,
            head="proxy",
            temperature=temperature,
            diversity=diversity,
            lr=lr,
            lr_per_images=lr_per_images,
            min_lr=min_lr,
            warmup_epochs=warmup_epochs,
            weight_decay=weight_decay,
            weight_decay_end=weight_decay_end,
            betas=betas,
            clip_per_tensor=clip_per_tensor,
            seed=seed,
        )

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
