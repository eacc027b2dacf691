"""The check of conversions catches a family that loses, changes or passes over weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from morphem.testing import ContractError
from morphem.testing.conversions import check_conversion, example_batch
from morphem.zoo.base import Checkpoint
from morphem.zoo.campfire import Campfire


class Tiny(Campfire):
    """Campfire with two heads."""

    def __init__(self, n_heads: int = 2) -> None:
        super().__init__(n_heads, "none")


class PassesOver(Tiny):
    """Takes what it knows and passes over the rest."""

    def convert(self, checkpoint: Checkpoint) -> Any:
        return super().convert(Checkpoint({k: v for k, v in checkpoint.content.items() if "else" not in k}, Path("x")))


class Forgives(Tiny):
    """Makes up what is missing."""

    def convert(self, checkpoint: Checkpoint) -> Any:
        return super().convert(Checkpoint({**_state(), **checkpoint.content}, checkpoint.path))


class Rounds(Tiny):
    """Gives back other weights."""

    def to_authors(self, encoder: Any) -> dict[str, torch.Tensor]:
        return {name: value.bfloat16().float() for name, value in super().to_authors(encoder).items()}


def _state() -> dict[str, torch.Tensor]:
    """Weights of a tiny encoder under the authors' names."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, 8),
        "pos_embed": (1, 5, 8),
        "patch_embed.proj.weight": (8, 1, 1, 4, 4),
        "patch_embed.proj.bias": (8,),
        "blocks.0.norm1.weight": (8,),
        "blocks.0.norm1.bias": (8,),
        "blocks.0.attn.qkv.weight": (24, 8),
        "blocks.0.attn.qkv.bias": (24,),
        "blocks.0.attn.proj.weight": (8, 8),
        "blocks.0.attn.proj.bias": (8,),
        "blocks.0.norm2.weight": (8,),
        "blocks.0.norm2.bias": (8,),
        "blocks.0.mlp.fc1.weight": (32, 8),
        "blocks.0.mlp.fc1.bias": (32,),
        "blocks.0.mlp.fc2.weight": (8, 32),
        "blocks.0.mlp.fc2.bias": (8,),
        "norm.weight": (8,),
        "norm.bias": (8,),
    }
    return {f"encoder.{name}": torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def test_a_faithful_family_passes_and_embeds() -> None:
    encoder = check_conversion(Tiny(), Checkpoint({"state_dict": _state(), "epoch": 3}, Path("x")))
    assert encoder.input_size_px == 8
    assert encoder.features(example_batch(encoder)).shape == (3, 8)


def test_conversion_draws_no_random_number_and_shares_no_memory_with_the_file() -> None:
    content, before = _state(), torch.random.get_rng_state()
    encoder = Tiny().convert(Checkpoint(content, Path("x")))
    assert torch.equal(torch.random.get_rng_state(), before)
    theirs = {value.data_ptr() for value in content.values()}
    assert not [name for name, value in encoder.state_dict().items() if value.is_meta or value.data_ptr() in theirs]
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (PassesOver, "converts a file with the strange 'encoder.of.something.else'"),
        (Forgives, "converts a file without 'encoder.cls_token'"),
        (Rounds, "to_authors.. gives 'encoder.cls_token' as no tensor of the file is"),
    ],
)
def test_an_unfaithful_family_is_caught(cls: type[Tiny], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_conversion(cls(), Checkpoint(_state(), Path("x")))
