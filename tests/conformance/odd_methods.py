"""Methods, each right but for one thing."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.methods.base import Method
from morphem.normalizers import SelfNormalize
from morphem.optimizers import AdamWRecipe
from morphem.rng import normal
from morphem.types import StepOutput
from tests.conformance.odd_parts import Good, MeanOfChannels


class Agree(Method):
    """Two views agree, spread apart by a hinge: enough of a method to pass."""

    def __init__(self, encoder: Encoder, views: MultiCrop, lr: float = 3e-3) -> None:
        super().__init__(encoder, views, AdamWRecipe(lr=lr, lr_per_images=None, warmup_epochs=1.0))
        self.head = nn.Linear(encoder.embed_dim, 4)

    def step(self, views):
        first, second = (self.encoder(view) for view in views)
        a, b = self.head(first), self.head(second)
        loss = (a - b).square().mean() + (1 - a.std(0)).relu().mean()
        return StepOutput(loss, first.detach(), {})

    @classmethod
    def tiny(cls):
        views = MultiCrop([ViewRecipe(count=2, size_px=16)])
        return cls(Encoder(MeanOfChannels(Good()), SelfNormalize(), input_size_px=16), views)


class SharedTeacher(Agree):
    """Its teacher is the student."""

    def __init__(self, encoder: Encoder, views: MultiCrop) -> None:
        super().__init__(encoder, views)
        self.teacher = nn.Linear(encoder.embed_dim, 4)
        self.teacher.weight.data = self.head.weight.data
        self.teacher.requires_grad_(False)


class Attached(Agree):
    """Keeps the graph of its embedding."""

    def step(self, views):
        return super().step(views)._replace(embedding=self.encoder(views[0]))


class NotScalar(Agree):
    """Gives one loss per row."""

    def step(self, views):
        output = super().step(views)
        return output._replace(loss=output.loss * torch.ones(3))


class TupleStep(Agree):
    """Returns a bare tuple."""

    def step(self, views):
        return tuple(super().step(views))


class Refuses(Agree):
    """Refuses its own tiny instance."""

    @classmethod
    def compatible(cls, strategy):
        return "on principle" if hasattr(strategy, "seen") or setattr(strategy, "seen", 1) else None


class MovesInValidation(Agree):
    """Moves a buffer in evaluation mode."""

    def __init__(self, encoder: Encoder, views: MultiCrop) -> None:
        super().__init__(encoder, views)
        self.register_buffer("center", torch.zeros(1))

    def step(self, views):
        self.center += 1
        return super().step(views)


class RandomValidation(Agree):
    """Gives another validation loss each time."""

    def step(self, views):
        output = super().step(views)
        return output._replace(loss=output.loss + torch.rand(()))


class NotLearning(Agree):
    """Climbs instead of falling."""

    def step(self, views):
        output = super().step(views)
        return output._replace(loss=2 * output.loss.detach() - output.loss) if self.training else output


class Collapsing(Agree):
    """Learns well, but only to give all images one embedding."""

    def step(self, views):
        first, second = (self.encoder(view) for view in views)
        return StepOutput((first - second).square().mean() + first.var(0).mean(), first.detach(), {})


class Idle(Agree):
    """Predicts numbers that have nothing to do with the image; that they are about 3 is all there is to learn."""

    def step(self, views):
        first = self.encoder(views[0])
        wanted = 3 + normal(views[0].seeds[: len(first)], "idle")[: len(first)]
        scores = self.head(first)[: len(wanted)]
        return StepOutput((scores - wanted).square().mean(), first.detach(), {})


class HeadOnly(Agree):
    """Leaves the encoder out of the optimizer."""

    def configure_optimizers(self):
        self.horizon = self._find_horizon()
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


class Detached(Agree):
    """Trains its head alone."""

    def step(self, views):
        output = super().step(views)
        loss = self.head(output.embedding).square().mean()
        return output._replace(loss=loss)


class ExportsACopy(Agree):
    """Exports an encoder that nobody trains."""

    def __init__(self, encoder: Encoder, views: MultiCrop) -> None:
        super().__init__(encoder, views)
        self.other = Encoder(MeanOfChannels(Good()), SelfNormalize(), input_size_px=16).requires_grad_(False)

    def exported_encoder(self):
        return self.other


class EagerTeacher(Agree):
    """Moves its teacher after every batch instead of every step."""

    def __init__(self, encoder: Encoder, views: MultiCrop) -> None:
        super().__init__(encoder, views)
        self.teacher = nn.Linear(encoder.embed_dim, 4).requires_grad_(False)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            self.teacher.weight.lerp_(self.head.weight, 0.5)


class Hidden(Agree):
    """Keeps a part of its state out of the checkpoint."""

    def __init__(self, encoder: Encoder, views: MultiCrop) -> None:
        super().__init__(encoder, views)
        self.seen = 0

    def step(self, views):
        output = super().step(views)
        self.seen += 1
        return output._replace(loss=output.loss * (1 + 0.1 * self.seen))


class Unseeded(Agree):
    """Draws from a generator of its own that nobody seeds."""

    def step(self, views):
        output = super().step(views)
        return output._replace(loss=output.loss * (1 + float(np.random.default_rng().random())))


class NoSpec(Agree):
    """Leaves the spec out of its checkpoint."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["other"] = 1


class PickledSelf(Agree):
    """Saves an object instead of data."""

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["path"] = Path("x")
