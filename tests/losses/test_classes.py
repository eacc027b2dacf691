"""Losses on labels against the papers' formulas."""

import pytest
import torch
from torch import Tensor

from morphem.losses.classes import ProxyScores, class_loss, group_means, supervised_contrast, triplet_loss
from tests.references import label_losses

LABELS = {
    "all known": [0, 1, 0, 2, 1, 0, 2],
    "some unknown": [0, -1, 0, 1, -1, 1, 2],
    "one of each": [0, 1, 2, 3, 4, 5, 6],
    "one class": [3, 3, 3, 3, -1, 3, 3],
    "none": [-1] * 7,
}


def rows(width: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(7, width, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("classes", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_over_the_rows_that_have_a_class(classes: list[int], smoothing: float) -> None:
    scores = rows(7)
    found = class_loss(scores, torch.tensor(classes), smoothing=smoothing)
    expected = label_losses.class_loss(scores.detach().double().numpy(), classes, smoothing)
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert int(found.n_rows) == sum(label >= 0 for label in classes)


@pytest.mark.parametrize("temperature", [0.07, 0.3, 1.0])
def test_proxy_scores_are_squared_distances(temperature: float) -> None:
    head = ProxyScores(5, 3, temperature)
    embeddings, proxies = rows().detach(), head.proxies.detach()
    expected = label_losses.proxy_scores(embeddings.double().numpy(), proxies.double().numpy(), temperature)
    torch.testing.assert_close(head(embeddings).detach(), torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("classes", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_supervised_contrast_is_the_papers(classes: list[int], temperature: float) -> None:
    projections = rows()
    found = supervised_contrast(projections, torch.tensor(classes), temperature)
    expected = label_losses.supervised_contrast(projections.detach().double().numpy(), classes, temperature)
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("classes", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("margin", [0.2, 1.0])
def test_triplets_are_the_hardest_of_the_batch(classes: list[int], margin: float) -> None:
    embeddings = rows()
    found = triplet_loss(embeddings, torch.tensor(classes), margin)
    expected = label_losses.triplet(embeddings.detach().double().numpy(), classes, margin)
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("classes", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("name", ["class", "contrast", "triplet"])
def test_a_row_without_a_label_gets_no_gradient_and_gradients_are_finite(classes: list[int], name: str) -> None:
    values = rows(7)
    losses = {
        "class": lambda: class_loss(values, torch.tensor(classes)),
        "contrast": lambda: supervised_contrast(values, torch.tensor(classes), 0.1),
        "triplet": lambda: triplet_loss(values, torch.tensor(classes), 0.2),
    }
    losses[name]().loss.backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert not values.grad[torch.tensor(classes) < 0].any()


def test_rows_that_are_equal_have_finite_gradients() -> None:
    values = torch.ones(4, 3).requires_grad_()
    triplet_loss(values, torch.tensor([0, 0, 1, 1]), 0.2).loss.backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("classes", LABELS.values(), ids=LABELS)
def test_groups_are_averaged_within_a_class(classes: list[int]) -> None:
    values, groups = rows().detach(), [0, 0, -1, 1, 0, 1, -1]
    means, labels = group_means(values, torch.tensor(classes), torch.tensor(groups))
    expected = label_losses.group_means(values.double().numpy(), classes, groups)
    assert labels.tolist() == [label for label, _ in expected]
    for mean, (_, row) in zip(means, expected, strict=True):
        torch.testing.assert_close(mean, torch.from_numpy(row).float())
