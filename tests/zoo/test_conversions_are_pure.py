"""Conversions leave the global generator and the file's tensors alone."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from morphem.zoo.base import Checkpoint, Pretrained
from morphem.zoo.microsnoop import Microsnoop
from morphem.zoo.public_code import PublicCode
from morphem.zoo.subcell import SubCell
from morphem.zoo.timm_vits import TimmViTs
from tests.zoo import test_microsnoop, test_subcell


def _timm(name: str, **settings: Any) -> Checkpoint:
    network = timm.create_model(name, embed_dim=32, depth=1, num_heads=4, num_classes=0, **settings)
    return Checkpoint(dict(network.state_dict()), Path(name))


FIVE = ["dna", "er", "rna", "agp", "mito"]
FACTS: dict[str, Any] = {"n_heads": 4, "layer_norm_eps": 1e-6}
CASES: list[tuple[Pretrained, Checkpoint]] = [
    (SubCell(n_heads=4), test_subcell.checkpoint(2)),
    (SubCell(n_heads=4, pairs=["actin", "rna"]), test_subcell.checkpoint(2)),
    (Microsnoop(), test_microsnoop.checkpoint()),
    (TimmViTs(n_heads=4), _timm("vit_small_patch16_224", img_size=32)),
    (TimmViTs(n_heads=4), _timm("vit_small_patch16_dinov3")),
    (PublicCode(**FACTS), _timm("vit_small_patch16_224", img_size=32)),
    (PublicCode(**FACTS, channels=FIVE, pixels="per_plane"), _timm("vit_small_patch16_224", img_size=32, in_chans=5)),
    (PublicCode(), Checkpoint(dict(timm.create_model("resnet18", num_classes=0).state_dict()), Path("resnet18"))),
]


@pytest.mark.parametrize(("family", "content"), CASES)
def test_nothing_is_drawn_and_no_memory_is_shared(family: Pretrained, content: Checkpoint) -> None:
    before = torch.random.get_rng_state()
    encoder = family.convert(content)
    assert torch.equal(torch.random.get_rng_state(), before)
    held = content.content.get("model", content.content)
    theirs = {value.data_ptr() for value in held.values()}
    tensors = [*encoder.named_parameters(), *encoder.named_buffers()]
    assert not [name for name, value in tensors if value.is_meta or value.data_ptr() in theirs]
