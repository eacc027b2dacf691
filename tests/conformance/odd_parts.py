"""Backbones, channel strategies and normalisers, each right but for one thing."""

import torch
from torch import nn

from morphem.backbones.base import Backbone
from morphem.channels.base import ChannelStrategy
from morphem.normalizers import SelfNormalize


def function() -> None:
    """No class."""


class Good(Backbone):
    """Mean of patches through a small network."""

    def __init__(self, embed_dim: int = 6) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.net = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.GELU(), nn.Conv2d(8, embed_dim, 1))

    def forward(self, planes):
        return self.net(planes).amax((2, 3))

    @classmethod
    def tiny(cls):
        return cls()


class NoTiny(Good):
    """Cannot be built."""

    @classmethod
    def tiny(cls):
        raise RuntimeError("no such thing")


class WrongShape(Good):
    """Gives rows per pixel."""

    def forward(self, planes):
        return self.net(planes)


class Half(Good):
    """Gives half precision."""

    def forward(self, planes):
        return super().forward(planes).half()


class Mates(Good):
    """Normalises over the batch, in evaluation mode too."""

    def forward(self, planes):
        features = super().forward(planes)
        return features - features.mean(0)


class Random(Good):
    """Has dropout that is never off."""

    def forward(self, planes):
        return nn.functional.dropout(super().forward(planes), 0.5, training=True)


class DrawsNumbers(Good):
    """Draws a number that it does not use."""

    def forward(self, planes):
        torch.rand(1)
        return super().forward(planes)


class InPlace(Good):
    """Scales its input where it lies."""

    def forward(self, planes):
        return super().forward(planes.mul_(0.5))


class Blind(Good):
    """Looks at nothing."""

    def forward(self, planes):
        return super().forward(torch.zeros_like(planes))


class Unused(Good):
    """Has a parameter that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(3))


class Forgetful(Good):
    """Keeps a weight where state_dict does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = [torch.rand(1)]

    def forward(self, planes):
        return super().forward(planes) * self.scale[0]


class Positional(Good):
    """Takes what has no name."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()


class Untyped(Good):
    """Takes what has no type."""

    def __init__(self, size=3) -> None:
        super().__init__()


class NotCopied(Good):
    """Its copy is itself."""

    def __deepcopy__(self, memo):
        return self


class Camel(Good):
    """Is registered under a name in upper case."""


class Undocumented(Good):
    pass


Undocumented.__doc__ = None


class MeanOfChannels(ChannelStrategy):
    """Mean over the planes of an image."""

    per_channel = False

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.embed_dim = backbone.embed_dim

    def forward(self, batch):
        features = self.backbone(batch.planes)
        counts = batch.offsets.diff()
        total = features.new_zeros(len(counts), self.embed_dim).index_add(0, batch.image_of_plane(), features)
        return total / counts[:, None]

    @classmethod
    def tiny(cls):
        return cls(Good())


class ByPosition(MeanOfChannels):
    """Weights planes by their place in the image."""

    def forward(self, batch):
        place = torch.arange(batch.n_planes) - batch.offsets[:-1][batch.image_of_plane()]
        return super().forward(batch._replace(planes=batch.planes * (1 + place[:, None, None, None])))


class Padded(MeanOfChannels):
    """Divides by the largest number of channels in the batch, as a padded batch would."""

    def forward(self, batch):
        counts = batch.offsets.diff()
        return super().forward(batch) * (counts / counts.max())[:, None]


class FirstOnly(MeanOfChannels):
    """Gives as many rows as there are planes."""

    def forward(self, batch):
        return self.backbone(batch.planes)


class FiveOnly(MeanOfChannels):
    """Fails on images without five channels."""

    def forward(self, batch):
        return super().forward(batch._replace(offsets=torch.arange(0, batch.n_planes + 1, 5)))


class NoisyNormalize(SelfNormalize):
    """Adds noise of no seed."""

    def forward(self, batch):
        batch = super().forward(batch)
        return batch._replace(planes=batch.planes + 0.01 * torch.randn_like(batch.planes))


class BatchNormalize(SelfNormalize):
    """Subtracts the mean of the batch."""

    def forward(self, batch):
        batch = super().forward(batch)
        return batch._replace(planes=batch.planes - batch.planes[:100].mean())
