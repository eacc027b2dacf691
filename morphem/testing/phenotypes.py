"""Images of two phenotypes that a random network tells apart badly: fibres that run up and down, or from side to side.

Where fibres lie, how dense, bright and noisy they are, and whether they are bright on dark, is drawn for every image
and says nothing about the phenotype; all channels of an image show the same fibres in a different light.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from morphem import rng
from morphem.types import ChannelBatch

SIDE_PX = 40
CLASSES = ("first", "second")
"""Names of the phenotypes: fibres up and down, fibres from side to side."""


def phenotype_batch(panels: Sequence[Sequence[str]], count: int, seed: int) -> ChannelBatch:
    """Draw images of both phenotypes, with the phenotype as their one label.

    Args:
        panels: Channel types of images; used in turns.
        count: How many images.
        seed: Other seeds give other images.

    Returns:
        A ragged batch as the loader yields it. A phenotype has nothing to do with the panel.
    """
    seeds = [rng.mix("phenotypes", seed, number) for number in range(count)]
    kinds = [int(draw < 0.5) for draw in rng.uniform(torch.tensor(seeds), "phenotype")[:, 0].tolist()]
    images = [panels[number % len(panels)] for number in range(count)]
    return ChannelBatch.from_planes(
        [[fibres(seeds[i], kinds[i], channel) for channel in range(len(panel))] for i, panel in enumerate(images)],
        images,
        keys=[f"phenotypes-{seed}-{number}" for number in range(count)],
        seeds=seeds,
        rows=range(count),
        labels=[[kind] for kind in kinds],
    )


def fibres(seed: int, kind: int, channel: int) -> Tensor:
    """Draw one plane, (H, W), uint8.

    Args:
        seed: Of the image: where fibres lie, 5 to 10 px apart and tilted by up to 19 degrees.
        kind: 0 for fibres up and down, 1 for fibres from side to side.
        channel: Number of the plane: how bright and noisy it is, and its shading.
    """
    spacing, tilt, start = rng.uniform(torch.tensor([seed]), "fibres", 3)[0].tolist()
    own = torch.tensor([rng.mix(seed, "channel", channel)])
    level, down, right, sign = rng.uniform(own, "light", 4)[0].tolist()
    rows, columns = torch.arange(SIDE_PX)[:, None].float(), torch.arange(SIDE_PX)[None].float()
    across, along = (rows, columns) if kind else (columns, rows)
    wave = torch.sin(2 * torch.pi * ((across + 0.7 * (tilt - 0.5) * along) / (5 + 5 * spacing) + start))
    shade = 40 * ((down - 0.5) * rows + (right - 0.5) * columns) / SIDE_PX
    noise = 12 * rng.normal(own, "noise", SIDE_PX**2).reshape(SIDE_PX, SIDE_PX)
    plane: Tensor = (90 + 60 * level + shade + (40 if sign < 0.5 else -40) * wave + noise).clamp(0, 254).round()
    return plane.to(torch.uint8)
