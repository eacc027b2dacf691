"""Balanced targets of DINO against a plain reference, and what they promise."""

import numpy as np
import pytest
import torch

from morphem.errors import ConfigError
from morphem.methods.dino import DINO, CenteredLoss, SinkhornLoss
from morphem.testing.batches import tiny_batch
from tests.tiny_fit import fit, tiny_dino


def _reference(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Sinkhorn and Knopp in double precision: prototypes share the mass evenly, then every image gets one."""
    mass = np.exp((scores.astype(np.float64) - scores.max()) / temperature)
    n_images, n_prototypes = mass.shape
    for _ in range(3):
        mass = mass / mass.sum(0, keepdims=True) / n_prototypes
        mass = mass / mass.sum(1, keepdims=True) / n_images
    return mass * n_images


def _scores(rows: int, prototypes: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, prototypes, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(("rows", "prototypes"), [(1, 3), (6, 4), (40, 8)])
@pytest.mark.parametrize("temperature", [0.04, 0.5])
def test_balanced_answers_are_those_of_a_plain_reference(rows, prototypes, temperature):
    scores = _scores(rows, prototypes)
    found = SinkhornLoss(prototypes, 0.1, 0.9).answers(scores, temperature)
    np.testing.assert_allclose(found.numpy(), _reference(scores.numpy(), temperature), rtol=2e-4, atol=1e-7)


def test_every_answer_sums_to_one_and_every_prototype_is_asked_for():
    answers = SinkhornLoss(8, 0.1, 0.9).answers(_scores(512, 8), 0.3)
    torch.testing.assert_close(answers.sum(1), torch.ones(512))
    torch.testing.assert_close(answers.mean(0), torch.full((8,), 1 / 8), rtol=0.02, atol=0)


def test_what_all_images_have_in_common_does_not_count():
    scores = _scores(32, 8)
    loss = SinkhornLoss(8, 0.1, 0.9)
    favoured = scores.clone()
    favoured[:, 2] += 1.0
    torch.testing.assert_close(loss.answers(favoured, 0.2), loss.answers(scores, 0.2), rtol=0.05, atol=1e-3)
    assert CenteredLoss(8, 0.1, 0.9).answers(favoured, 0.2)[:, 2].mean() > 0.4


def test_a_very_low_temperature_stays_finite():
    answers = SinkhornLoss(8, 0.1, 0.9).answers(_scores(16, 8), 0.001)
    assert answers.isfinite().all()
    torch.testing.assert_close(answers.sum(1), torch.ones(16))


def test_the_loss_is_the_cross_entropy_with_the_balanced_answers():
    teacher, student = _scores(12, 5).split(6), torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(4))
    loss = SinkhornLoss(5, student_temperature=0.2, center_momentum=0.9)
    found = loss(list(teacher), list(student), teacher_temp=0.1)
    targets = _reference(torch.cat(teacher).numpy(), 0.1).reshape(2, 6, 5)
    logits = student.double().numpy() / 0.2
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    terms = [-(targets[t] * logs[s]).sum(-1).mean() for t in range(2) for s in range(4) if s != t]
    assert float(found) == pytest.approx(np.mean(terms), rel=1e-4)


def test_no_centre_is_kept(tmp_path):
    method = tiny_dino(centering="sinkhorn_knopp")
    fit(method, folder=tmp_path)
    assert not method.loss.center.any()


def test_a_method_with_balanced_targets_trains_and_logs_their_entropy():
    method = tiny_dino(centering="sinkhorn_knopp").train()
    output = method.step(method.views(tiny_batch(), method.encoder.normalizer))
    assert output.loss.isfinite()
    assert 0 <= float(output.logs["teacher_entropy"]) <= float(output.logs["teacher_usage"]) <= 1.0001


def test_the_teacher_s_head_looks_at_the_batch_where_it_is_normalised():
    head = tiny_dino(head_batch_norm=True).teacher_head  # as Lightning finds it: it does not call train()
    rows = torch.randn(16, head.layers[0].in_features)
    torch.testing.assert_close(head(rows + 5.0), head(rows), rtol=1e-4, atol=1e-5)


def test_another_word_for_centering_is_refused():
    with pytest.raises(ConfigError, match=r"centering='sinkhorn' .* 'mean' or 'sinkhorn_knopp'"):
        tiny_dino(centering="sinkhorn")


def test_a_mean_centre_is_the_default():
    assert type(DINO.tiny().loss) is CenteredLoss
