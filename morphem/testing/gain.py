"""The check that training is good for something: embeddings tell phenotypes apart better than before.

A linear probe is fitted on the embeddings of some images and judged on others, by the area under the ROC curve: 0.5 is
chance. The same images judge the encoder before and after training, from several seeds. A run stops early when a
further set of images says that there is nothing more to learn; that set has no say in the result.

Beating random weights alone would prove little: a small network whose weights have grown, whatever for, mixes its input
more, and a linear probe finds more in it. So the same encoder is also trained for as many steps to answer with random
numbers, and has to be beaten too. That does not rule out every empty lesson: random answers far from zero, which make
large steps, can pass (tests/conformance/test_gain.py shows one). The loss that has to fall is another check's business.
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Self

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from morphem import rng
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.methods.base import Method
from morphem.normalizers import SelfNormalize
from morphem.optimizers import AdamWRecipe
from morphem.testing.contract import attempt, require
from morphem.testing.methods import Strategy, make, panels_of
from morphem.testing.phenotypes import CLASSES, phenotype_batch
from morphem.testing.training import quiet_trainer
from morphem.types import ChannelBatch, StepOutput

LEAST_GAIN = 0.1
"""How much the mean area over seeds must rise over that of random weights."""

LEAST_LEAD = 0.02
"""How much it must be above that of an encoder that was trained to answer with random numbers."""

MOST_AT_START = 0.8
"""Where random weights do better than this, there is too little to gain."""

ENOUGH = 0.98
"""A run stops early at this area on images that do not judge it."""

N_STEPS = 320
N_JUDGED = 160
_BATCH = 16
_BATCHES = 8
_RIDGE = 1.0


def check_gain(
    cls: type[Method], strategy: Strategy = None, *, seeds: Sequence[int] = (0, 1), n_steps: int = N_STEPS
) -> float:
    """Check that training makes embeddings that tell the synthetic phenotypes apart better than without a lesson.

    They have to beat those of random weights by `LEAST_GAIN`, and those of the same encoder trained to answer with
    random numbers by `LEAST_LEAD`.

    Args:
        cls: The method; it is built by `tiny()`.
        strategy: The channel strategy of its encoder; None for the method's own choice.
        seeds: Of weights and images.
        n_steps: Longest run.

    Returns:
        The mean gain in area under the curve over the seeds.

    Raises:
        ContractError: If they do not, or random weights leave too little to gain.
    """
    scores: list[tuple[float, float]] = [
        attempt(cls, "cannot be trained on images of two phenotypes", partial(gain_of, cls, strategy, seed, n_steps))
        for seed in seeds
    ]
    start = sum(before for before, _ in scores) / len(scores)
    require(
        start <= MOST_AT_START,
        cls,
        f"random weights already tell the phenotypes apart (area under the curve {start:.3f}), so this check says "
        "nothing about training; it is meant for small transformers",
    )
    gain = sum(after - before for before, after in scores) / len(scores)
    over = "" if strategy is None else f" over {strategy.__name__}"
    told = ", ".join(f"{before:.3f} before, {after:.3f} after" for before, after in scores)
    require(
        gain >= LEAST_GAIN,
        cls,
        f"{n_steps} steps{over} do not make embeddings that tell phenotypes apart: the area under the curve of a "
        f"linear probe rises by {gain:.3f} where {LEAST_GAIN} is asked for ({told}, for seeds {list(seeds)})",
    )
    aimless = aimless_area(strategy or type(make(cls).encoder.channels), tuple(seeds), n_steps)
    lead = start + gain - aimless
    require(
        lead >= LEAST_LEAD,
        cls,
        f"{n_steps} steps{over} do not make embeddings that tell phenotypes apart better than training on random "
        f"answers does: the area under the curve of a linear probe is {start + gain:.3f} ({told}), and {aimless:.3f} "
        "after that",
    )
    return gain


@cache
def aimless_area(strategy: type[ChannelStrategy], seeds: tuple[int, ...], n_steps: int) -> float:
    """Return the mean area under the curve after training on random answers.

    Args:
        strategy: The channel strategy of the encoder.
        seeds: Of weights and images.
        n_steps: Length of the run.
    """
    return sum(gain_of(Aimless, strategy, seed, n_steps)[1] for seed in seeds) / len(seeds)


class Aimless(Method):
    """Learns to answer with random numbers, others at every step: there is nothing to learn.

    Args:
        encoder: What is trained.
        views: One of them is looked at.
    """

    WIDTH = 8

    def __init__(self, encoder: Encoder, views: MultiCrop) -> None:
        super().__init__(encoder, views, AdamWRecipe(lr=3e-3, lr_per_images=None, warmup_epochs=0.0))
        self.head = nn.Linear(encoder.embed_dim, self.WIDTH)

    def step(self, views: list[ChannelBatch]) -> StepOutput:
        """Compare the answers with random numbers, drawn from the seeds of the images."""
        embedding = self.encoder(views[0])
        wanted = rng.normal(views[0].seeds[:1], "aimless", embedding.shape[0] * self.WIDTH).reshape(-1, self.WIDTH)
        return StepOutput((self.head(embedding) - wanted).square().mean(), embedding.detach(), {})

    @classmethod
    def tiny(cls, encoder: Encoder | None = None) -> Self:
        """One view of 32 px; a bag of channels where not told."""
        encoder = encoder or Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32)
        return cls(encoder, MultiCrop([ViewRecipe(count=1, size_px=32)]))


def gain_of(cls: type[Method], strategy: Strategy, seed: int, n_steps: int) -> tuple[float, float]:
    """Train once; return the area under the curve before and after.

    Args:
        cls: The method.
        strategy: The channel strategy.
        seed: Of weights and images.
        n_steps: Longest run.
    """
    panels = [panel for panel in panels_of(strategy) if len(panel) <= 3] or panels_of(strategy)
    method = make(cls, strategy, seed=seed)
    fitted, judged, watched = (
        phenotype_batch(panels, N_JUDGED, rng.mix("gain", seed, name)) for name in ("fitted", "judged", "watched")
    )
    before = probe_area(method.exported_encoder(), fitted, judged)
    stop = StopWhenLearned(fitted, watched)
    with quiet_trainer(max_epochs=max(1, n_steps // _BATCHES), callbacks=[stop]) as trainer:
        trainer.fit(method, datamodule=PhenotypeData(panels, seed))
    return before, probe_area(method.exported_encoder(), fitted, judged)


def probe_area(encoder: Encoder, fitted: ChannelBatch, judged: ChannelBatch) -> float:
    """Return the area under the ROC curve of a linear probe: of all pairs of one image of each phenotype, the share in
    which the probe scores the second phenotype higher.

    Args:
        encoder: Embeds both; where it embeds planes, those of an image are averaged.
        fitted: The probe is a ridge regression on the standardised embeddings of these.
        judged: These judge it.
    """
    first, second = (_embed(encoder, batch) for batch in (fitted, judged))
    mean, deviation = first.mean(0), first.std(0).clamp(min=1e-9)
    first, second = (first - mean) / deviation, (second - mean) / deviation
    target = fitted.labels[:, 0].double() * 2 - 1
    gram = first.T @ first + _RIDGE * torch.eye(first.shape[1], dtype=torch.float64)
    scores = second @ torch.linalg.solve(gram, first.T @ (target - target.mean()))
    classes = judged.labels[:, 0]
    high, low = scores[classes == 1][:, None], scores[classes == 0]
    return float((high > low).double().mean() + 0.5 * (high == low).double().mean())


def _embed(encoder: Encoder, batch: ChannelBatch) -> Tensor:
    """One embedding for each image, (N, D), float64."""
    features = encoder.features(batch).double()
    if not encoder.per_channel:
        return features
    total = features.new_zeros(batch.n_images, features.shape[1]).index_add(0, batch.image_of_plane(), features)
    return total / batch.offsets.diff()[:, None]


class StopWhenLearned(L.Callback):
    """Ends a run when a probe on images that do not judge it finds next to nothing left to learn.

    Args:
        fitted: The probe is fitted on these.
        watched: And watched on these.
        every: Epochs between looks.
    """

    def __init__(self, fitted: ChannelBatch, watched: ChannelBatch, every: int = 8) -> None:
        self.fitted = fitted
        self.watched = watched
        self.every = every

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look, in some epochs."""
        if (trainer.current_epoch + 1) % self.every == 0:
            assert isinstance(pl_module, Method)
            trainer.should_stop = probe_area(pl_module.exported_encoder(), self.fitted, self.watched) >= ENOUGH


class PhenotypeData(L.LightningDataModule):
    """Images of both phenotypes to train on, with new views in every epoch.

    Args:
        panels: Channel types of images.
        seed: Of the images.
    """

    def __init__(self, panels: Sequence[Sequence[str]], seed: int) -> None:
        super().__init__()
        self.batch_size = _BATCH
        self.classes = {"label": list(CLASSES)}
        self._batches = [
            phenotype_batch(panels, _BATCH, rng.mix("gain", seed, "trained", number)) for number in range(_BATCHES)
        ]
        self._epoch = 0

    def train_dataloader(self) -> "PhenotypeData":
        """Return the batches."""
        return self

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[ChannelBatch]:
        self._epoch += 1
        for batch in self._batches:
            yield batch._replace(seeds=rng.mix_tensor(batch.seeds, "epoch", self._epoch))
