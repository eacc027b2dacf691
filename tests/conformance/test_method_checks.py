"""The checks of methods catch what they are for; the failure names it."""

import pytest
import torch

from morphem.testing import ContractError, check_method
from morphem.testing.methods import check_accumulation, check_learning, check_resume, check_step, check_validation
from tests.conformance import odd_methods

pytestmark = pytest.mark.usefixtures("odd_plugins")


@pytest.mark.parametrize(
    ("check", "cls", "message"),
    [
        (check_step, odd_methods.SharedTeacher, r"'teacher.weight' shares its memory with the trained 'head.weight'"),
        (check_step, odd_methods.Attached, "the embedding is not detached"),
        (check_step, odd_methods.NotScalar, r"the loss is torch.float32 of shape \(3,\)"),
        (check_step, odd_methods.TupleStep, r"step\(\) returns a tuple, not a StepOutput"),
        (check_step, odd_methods.Refuses, r"refuses the channel strategy of its own tiny\(\): on principle"),
        (check_validation, odd_methods.MovesInValidation, "validation moves center"),
        (check_validation, odd_methods.RandomValidation, r"gives validation losses .* for one batch"),
        (check_learning, odd_methods.NotLearning, "steps do not lower the loss"),
        (check_learning, odd_methods.HeadOnly, "the optimizer does not hold encoder.channels.backbone.net"),
        (check_learning, odd_methods.Detached, "no gradient reaches encoder.channels.backbone.net"),
        (check_learning, odd_methods.ExportsACopy, "training leaves the exported encoder as it was"),
        (check_accumulation, odd_methods.EagerTeacher, "teacher.weight move between optimizer steps"),
        (check_resume, odd_methods.Hidden, "a run that was cut and resumed ends with other weights"),
        (check_resume, odd_methods.Unseeded, "two runs with one seed end with different weights"),
        (check_resume, odd_methods.NoSpec, "its checkpoint has no 'morphem'"),
        (
            check_resume,
            odd_methods.PickledSelf,
            "cannot be resumed from its checkpoint|its checkpoint holds more than data",
        ),
    ],
)
def test_a_bad_method_is_caught(check, cls, message):
    arguments = (20,) if check is check_learning else ()
    with pytest.raises(ContractError, match=message):
        check(cls, *arguments)


def test_a_good_method_of_a_stranger_passes():
    check_method(odd_methods.Agree)


def test_the_checks_of_methods_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    check_accumulation(odd_methods.Agree)
    assert torch.equal(before, torch.random.get_rng_state())
