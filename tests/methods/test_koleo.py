"""The KoLeo term of DINO."""

import numpy as np
import pytest
import torch

from morphem.errors import ConfigError
from morphem.testing.batches import tiny_batch
from tests.tiny_fit import tiny_dino


def _step(**settings):
    torch.manual_seed(0)
    method = tiny_dino(**settings).eval()
    views = method.views(tiny_batch(), method.encoder.normalizer)
    return method, views, method.step(views)


def test_it_adds_the_mean_log_distance_to_the_nearest_neighbour_of_each_global_view():
    _, _, without = _step()
    method, views, with_term = _step(koleo_weight=0.5)
    terms = []
    for view in views[: method.n_global_views]:
        rows = torch.nn.functional.normalize(method.encoder(view), dim=1).detach().numpy().astype(np.float64)
        distances = np.linalg.norm(rows[:, None] - rows[None], axis=2) + np.diag(np.full(len(rows), np.inf))
        terms.append(-np.log(distances.min(1)).mean())
    added = float((with_term.loss - without.loss).detach())
    assert added == pytest.approx(0.5 * np.mean(terms), rel=1e-3)


def test_it_pushes_embeddings_apart():
    method, views, output = _step(koleo_weight=100.0)
    output.loss.backward()
    rows = method.encoder(views[0])
    before = torch.nn.functional.normalize(rows, dim=1).std(0).mean()
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad / parameter.grad.norm().clamp_min(1e-12)
    after = torch.nn.functional.normalize(method.encoder(views[0]), dim=1).std(0).mean()
    assert after > before


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigError, match="koleo_weight=-1"):
        tiny_dino(koleo_weight=-1)
