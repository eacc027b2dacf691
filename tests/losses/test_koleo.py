"""KoLeo against the formula and lightly's loss, in one process."""

import pytest
import torch
from lightly.loss import KoLeoLoss

from morphem.losses.koleo import koleo
from tests.references import patch_distillation as plain


def _rows(count: int) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", [2, 3, 20])
def test_it_is_the_papers(count: int) -> None:
    rows = _rows(count)
    assert float(koleo(rows)) == pytest.approx(plain.koleo(rows.double().numpy()), rel=1e-5, abs=1e-6)


def test_value_and_gradient_are_those_of_lightly() -> None:
    rows = _rows(9).requires_grad_()
    torch.testing.assert_close(koleo(rows), KoLeoLoss()(rows))
    mine, theirs = (torch.autograd.grad(loss, rows)[0] for loss in (koleo(rows), KoLeoLoss()(rows)))
    torch.testing.assert_close(mine, theirs)


def test_a_row_without_neighbour_costs_nothing_but_keeps_its_graph() -> None:
    rows = _rows(1).requires_grad_()
    loss = koleo(rows)
    assert float(loss.detach()) == 0.0
    assert not torch.autograd.grad(loss, rows)[0].any()


def test_equal_rows_give_a_finite_loss() -> None:
    rows = torch.ones(4, 3).requires_grad_()
    loss = koleo(rows)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, rows)[0].isfinite().all()
