"""The loss of hidden patches against the formula, lightly's loss, and what it promises."""

import pytest
import torch
from lightly.loss import IBOTPatchLoss
from torch import Tensor

from morphem.losses.patch_distillation import PatchDistillation
from tests.references import patch_distillation as plain

COUNTS = (3, 0, 1, 5)  # hidden patches of four images
K = 7


def _scores() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    teacher, student = (torch.randn(sum(COUNTS), K, generator=generator) / 3 for _ in range(2))
    weights = torch.cat([torch.full((count,), 1 / max(count, 1)) for count in COUNTS]) / len(COUNTS)
    return teacher, student, weights


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize(("tau_t", "tau_s"), [(0.04, 0.1), (0.07, 0.1), (1.0, 0.5)])
def test_the_loss_is_the_papers(balance: bool, tau_t: float, tau_s: float) -> None:
    teacher, student, weights = _scores()
    loss = PatchDistillation(K, tau_s, 0.9, balanced=balance)
    loss.center.copy_(torch.linspace(-0.2, 0.2, K) * (not balance))
    parts = [[part.double().numpy() for part in scores.split(COUNTS)] for scores in (teacher, student)]
    expected = plain.patch_loss(*parts, loss.center.double().numpy(), tau_t, tau_s, balance)
    assert float(loss(teacher, student, weights, tau_t)) == pytest.approx(expected, rel=2e-4)


def test_loss_and_centre_are_those_of_lightly() -> None:
    teacher, student, weights = _scores()
    mask = torch.zeros(len(COUNTS), 2, 4, dtype=torch.bool)
    for image, count in enumerate(COUNTS):
        mask[image].view(-1)[:count] = True
    mine, theirs = PatchDistillation(K, 0.1, 0.9, balanced=False), IBOTPatchLoss(K, 0.04, 0.1)
    for _ in range(2):
        torch.testing.assert_close(mine(teacher, student, weights, 0.04), theirs(teacher, student, mask))
        mine.move_center()
        torch.testing.assert_close(mine.center, theirs.center.value.flatten())


def test_the_centre_waits_for_the_step_and_is_the_mean_over_all_patches() -> None:
    teacher, student, weights = _scores()
    loss = PatchDistillation(K, 0.1, 0.9, balanced=False)
    for part in (slice(0, 2), slice(2, 9)):
        loss(teacher[part], student[part], weights[part], 0.04)
        assert not loss.center.any()
    loss.move_center()
    torch.testing.assert_close(loss.center, 0.1 * teacher.mean(0))
    loss.move_center()
    torch.testing.assert_close(loss.center, 0.1 * teacher.mean(0))


def test_evaluation_leaves_the_centre_alone() -> None:
    teacher, student, weights = _scores()
    loss = PatchDistillation(K, 0.1, 0.9, balanced=False).eval()
    loss(teacher, student, weights, 0.04)
    loss.move_center()
    assert not loss.center.any()


@pytest.mark.parametrize("balance", [False, True])
def test_a_batch_without_hidden_patches_costs_nothing(balance: bool) -> None:
    loss = PatchDistillation(K, 0.1, 0.9, balanced=balance)
    student = torch.randn(0, K, requires_grad=True)
    found = loss(torch.randn(0, K), student, torch.ones(0), 0.04)
    assert float(found.detach()) == 0.0
    found.backward()
    loss.move_center()
    assert not loss.center.any()


def test_balanced_targets_ask_for_every_prototype() -> None:
    scores = torch.nn.functional.normalize(torch.randn(512, K, generator=torch.Generator().manual_seed(0)))
    targets = PatchDistillation(K, 0.1, 0.9, balanced=True).targets(scores, 0.3)
    torch.testing.assert_close(targets.sum(1), torch.ones(512))
    torch.testing.assert_close(targets.mean(0), torch.full((K,), 1 / K), rtol=0.02, atol=0)


def test_a_very_low_temperature_stays_finite() -> None:
    teacher, student, weights = _scores()
    for balance in (False, True):
        assert PatchDistillation(K, 0.1, 0.9, balanced=balance)(teacher, student, weights, 0.001).isfinite()
