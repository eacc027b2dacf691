"""A family of small encoders with records of every kind, for the machinery around families."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from morphem import weights
from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.zoo.base import ByHand, Checkpoint, HubFile, Pretrained, Record, WebFile

PREFIX = "net."
HUB = Record(
    name="tiny-hub",
    summary="a small encoder for tests",
    location=HubFile("lab/tiny", "model.safetensors"),
    license="mit",
    restricted=False,
    citation="Nobody et al. 2024",
    source="https://example.org/lab/tiny at abc123",
    exported="only",
    input_domain="uint8",
    preparation="z-score",
    native_size_px=16,
    pooling="class token",
    channel_rule="any channels, each on its own",
    embed_dim=8,
)
WEB = replace(HUB, name="tiny-web", location=WebFile("https://example.org/tiny.pth"))
NC = replace(
    HUB, name="tiny-nc", location=WebFile("https://example.org/nc.pth"), license="CC-BY-NC-4.0", restricted=True
)
HAND = replace(HUB, name="tiny-hand", location=ByHand("https://example.org/form", "hand.pth", "fill in the form"))


class Tiny(Pretrained):
    """Small encoders.

    Args:
        scale: What the features are multiplied with, in words of nobody.
    """

    records = (HUB, WEB, NC, HAND)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        return any(str(key).startswith(PREFIX) for key in checkpoint.entry("state_dict"))

    def convert(self, checkpoint: Checkpoint) -> Encoder:
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint.under("", "state_dict").items()}
        if not any(name.startswith(PREFIX) for name in checkpoint.entry("state_dict")):
            raise WeightsError(f"{checkpoint.path} is no tiny encoder.")
        encoder = Encoder.tiny()
        weights.load_strictly(encoder, tensors, str(checkpoint.path))
        return encoder.eval()

    @classmethod
    def tiny(cls) -> Checkpoint:
        torch.manual_seed(0)
        tensors = {PREFIX + name: tensor for name, tensor in Encoder.tiny().state_dict().items()}
        return Checkpoint({"state_dict": tensors, "epoch": 3}, Path("tiny.pth"))

    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        return {PREFIX + name: tensor for name, tensor in encoder.state_dict().items()}

    @classmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        return cls() if record.get("peer") == "tiny" else None

    def replay(
        self, encoder: Encoder, checkpoint: Checkpoint, record: Mapping[str, Any], case: str, inputs: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        table = encoder.embed(inputs["images"], inputs["channels"])
        return {"features": torch.from_numpy(table.values)}


def write(path: Path, seed: int = 0) -> str:
    """Write a checkpoint of the family; returns its SHA-256."""
    torch.manual_seed(seed)
    content = {"state_dict": Tiny().to_authors(Encoder.tiny()), "epoch": 3}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
