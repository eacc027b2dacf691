"""Teachers share nothing with their students and follow them as told."""

import torch
from torch import nn

from morphem.teacher import follow, make_teacher


def _student() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_teacher_starts_equal_and_shares_no_storage() -> None:
    student = _student()
    teacher = make_teacher(student)
    for mine, theirs in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.untyped_storage().data_ptr() != theirs.untyped_storage().data_ptr()


def test_a_teacher_has_no_gradients_and_is_in_evaluation_mode() -> None:
    teacher = make_teacher(_student())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_following_is_the_moving_average_of_the_parameters() -> None:
    student = _student()
    teacher = make_teacher(student)
    before = [parameter.clone() for parameter in teacher.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    follow(teacher, student, momentum=0.9)
    for old, mine, theirs in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.9 * old + 0.1 * theirs)


def test_following_copies_buffers() -> None:
    student = _student()
    teacher = make_teacher(student)
    student(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    follow(teacher, student, momentum=1.0)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()


def test_a_momentum_of_zero_copies_and_of_one_stands_still() -> None:
    student, other = _student(), _student()
    teacher = make_teacher(other)
    follow(teacher, student, momentum=1.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), other.parameters(), strict=True))
    follow(teacher, student, momentum=0.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
