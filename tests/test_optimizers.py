"""Parameter groups, rates and clipping."""

import pytest
import torch
from torch import nn

from morphem.backbones.vit import VisionTransformer
from morphem.errors import ConfigError
from morphem.optimizers import (
    AdamWRecipe,
    Lion,
    LionRecipe,
    clip_per_tensor,
    fill_state,
    set_rates,
    weight_decay_groups,
)
from morphem.schedules import Horizon


def test_biases_and_gains_are_exempt_from_weight_decay_and_tokens_are_not() -> None:
    module = VisionTransformer.tiny()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed, exempt = weight_decay_groups(module)
    kinds = {group["name"]: {names[id(parameter)] for parameter in group["params"]} for group in (decayed, exempt)}
    assert kinds["exempt"] == {n for n, p in module.named_parameters() if n.endswith(".bias") or p.ndim == 1}
    for part in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        assert any(name.endswith(part) for name in kinds["decayed"]), part
    assert exempt["weight_decay"] == 0.0
    assert len(kinds["decayed"] | kinds["exempt"]) == len(names)


def test_frozen_parameters_are_in_no_group() -> None:
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    assert [len(group["params"]) for group in weight_decay_groups(module)] == [0, 1]


def test_rates_reach_all_groups_and_weight_decay_only_one() -> None:
    optimizer = AdamWRecipe(lr=1.0).build(nn.Linear(2, 2))
    set_rates(optimizer, 0.3, 0.2)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.3, 0.2), (0.3, 0.0)]


def test_clipping_works_on_each_tensor_by_itself() -> None:
    large, small, unused = (nn.Parameter(torch.zeros(4)) for _ in range(3))
    large.grad, small.grad = torch.full((4,), 100.0), torch.full((4,), 0.5)
    clip_per_tensor([large, small, unused], max_norm=3.0)
    assert large.grad.norm() == pytest.approx(3.0, rel=1e-5)
    assert torch.equal(small.grad, torch.full((4,), 0.5))
    assert unused.grad is None


def test_clipping_is_the_published_formula() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    gradient = torch.tensor([3.0, -4.0, 12.0])
    parameter.grad = gradient.clone()
    clip_per_tensor([parameter], max_norm=2.0)
    torch.testing.assert_close(parameter.grad, gradient * (2.0 / (13.0 + 1e-6)))


@pytest.mark.parametrize(("per", "batch", "expected"), [(256, 2048, 4e-4), (256, 3584, 7e-4), (None, None, 5e-5)])
def test_the_learning_rate_grows_with_the_batch_as_published(
    per: int | None, batch: int | None, expected: float
) -> None:
    assert AdamWRecipe(lr=5e-5, lr_per_images=per).peak_lr(batch) == pytest.approx(expected)


def test_an_unknown_batch_size_is_refused_where_the_rate_depends_on_it() -> None:
    with pytest.raises(ConfigError, match="lr_per_images to null"):
        AdamWRecipe(lr=5e-5).peak_lr(None)


def test_weight_decay_is_a_cosine_over_the_run_or_constant() -> None:
    horizon = Horizon(10, 100)
    recipe = AdamWRecipe(lr=1.0)
    assert recipe.weight_decay_at(0, horizon) == pytest.approx(0.04)
    assert recipe.weight_decay_at(50, horizon) == pytest.approx(0.22)
    assert recipe.weight_decay_at(100, horizon) == pytest.approx(0.4)
    assert AdamWRecipe(lr=1.0, weight_decay_end=None).weight_decay_at(77, horizon) == pytest.approx(0.04)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": 1.0, "clip_per_tensor": 0.0}, {"lr": 1.0, "weight_decay": -1.0}])
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=list(wrong)[-1]):
        AdamWRecipe(**wrong)  # type: ignore[arg-type]


def test_lion_moves_every_weight_by_the_rate_in_the_direction_of_the_sign_of_a_running_mean() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    optimizer = Lion([{"params": [weight]}], lr=0.1, betas=(0.9, 0.95), weight_decay=0.2)
    values, mean = weight.tolist(), [0.0, 0.0, 0.0]
    gradients = [[0.3, -0.1, 0.0], [-0.4, -0.1, 0.2], [0.05, 0.0, -1.0]]
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        for i, value in enumerate(gradient):
            direction = 0.9 * mean[i] + 0.1 * value
            sign = (direction > 0) - (direction < 0)
            values[i] = values[i] - 0.1 * (sign + 0.2 * values[i])
            mean[i] = 0.95 * mean[i] + 0.05 * value
    assert weight.tolist() == pytest.approx(values, abs=1e-12)


def test_lion_has_its_state_before_the_first_step() -> None:
    optimizer = LionRecipe(lr=1e-4).build(torch.nn.Linear(2, 2))
    fill_state(optimizer)
    states = [optimizer.state[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    assert [sorted(state) for state in states] == [["exp_avg"], ["exp_avg"]]
