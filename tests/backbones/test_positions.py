import numpy as np
import pytest
import torch

from morphem.backbones.positions import resampled_positions, sincos_positions
from morphem.errors import ConfigError
from tests.references import dino_positions, sincos


@pytest.mark.parametrize("grid", [(3, 3), (2, 7), (9, 4)])
def test_a_table_is_resampled_as_dino_does(grid: tuple[int, int]) -> None:
    table = torch.randn(1, 1 + 16, 8)
    result = resampled_positions(table, (4, 4), grid)
    torch.testing.assert_close(result, dino_positions.resampled(table, 4, grid), atol=1e-5, rtol=0)


def test_the_trained_square_is_left_alone_unless_it_is_asked_for() -> None:
    table = torch.randn(1, 1 + 16, 8)
    assert resampled_positions(table, (4, 4), (4, 4)) is table
    result = resampled_positions(table, (4, 4), (4, 4), always=True)
    torch.testing.assert_close(result, dino_positions.resampled(table, 4, (4, 4)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 9)])
def test_fixed_positions_are_sines_and_cosines_of_row_and_column(grid: tuple[int, int]) -> None:
    np.testing.assert_allclose(sincos_positions(grid, 24)[0].numpy(), sincos.positions(*grid, 24), atol=1e-6)


def test_a_width_that_four_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs an embed_dim that 4 divides, not 18"):
        sincos_positions((2, 2), 18)
