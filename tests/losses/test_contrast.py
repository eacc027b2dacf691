"""The contrast of two views against the formula and lightly's loss, in one process."""

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from morphem.losses.contrast import nt_xent
from morphem.losses.gathering import gather_rows
from tests.references import nt_xent as plain


def _views(rows: int, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = 3 * torch.randn(rows, width, generator=generator)
    return first, first + torch.randn(rows, width, generator=generator)


@pytest.mark.parametrize("rows", [1, 2, 3, 17])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 2.0])
def test_the_loss_is_the_papers(rows: int, temperature: float) -> None:
    first, second = _views(rows)
    expected = plain.nt_xent(first.double().numpy(), second.double().numpy(), temperature)
    found = nt_xent(first, second, temperature)
    assert float(found.loss) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert found.loss.dtype == torch.float32
    assert found.n_rows == rows


def test_loss_and_gradient_are_those_of_lightly() -> None:
    views = [view.requires_grad_() for view in _views(9)]
    mine = torch.autograd.grad(nt_xent(*views, 0.1).loss, views)
    theirs = torch.autograd.grad(NTXentLoss(0.1)(*views), views)
    torch.testing.assert_close(nt_xent(*views, 0.1).loss, NTXentLoss(0.1)(*views))
    torch.testing.assert_close(mine, theirs)


def test_the_order_of_rows_and_of_views_does_not_matter() -> None:
    first, second = _views(8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    loss = nt_xent(first, second, 0.1).loss
    torch.testing.assert_close(nt_xent(first[order], second[order], 0.1).loss, loss)
    torch.testing.assert_close(nt_xent(second, first, 0.1).loss, loss)


def test_accuracy_and_alignment_tell_found_views_from_lost_ones() -> None:
    corners = torch.eye(4)
    found = nt_xent(corners, 2 * corners, 0.1)
    assert float(found.accuracy) == 1.0
    assert float(found.alignment) == pytest.approx(1.0)
    lost = nt_xent(corners, corners.roll(1, 0), 0.1)
    assert float(lost.accuracy) == 0.0
    assert float(lost.alignment) == pytest.approx(0.0, abs=1e-6)
    assert lost.loss > found.loss


def test_a_single_row_has_nothing_to_be_told_from() -> None:
    assert float(nt_xent(*_views(1), 0.1).loss) == 0.0


def test_a_process_alone_gathers_its_own_rows() -> None:
    rows = torch.randn(3, 2)
    joined, start = gather_rows(rows)
    assert joined is rows
    assert start == 0
