import numpy as np
import torch

from morphem.channels.sequences import patchify
from tests.references import patches


def test_patches_are_cut_row_by_row_and_channel_by_channel() -> None:
    planes = torch.randn(2, 3, 12, 10, dtype=torch.float64)
    np.testing.assert_array_equal(patchify(planes, (4, 5)).numpy(), patches.patchify(planes.numpy(), 4, 5))
