"""Backbones that do less than a vision transformer."""

import torch
from torch import Tensor, nn

from morphem.backbones.base import Backbone


class Averages(Backbone):
    """A backbone without tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 1
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, planes: Tensor) -> Tensor:
        return planes.mean((2, 3)) * self.scale

    @classmethod
    def tiny(cls) -> "Averages":
        return cls()
