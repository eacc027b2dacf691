"""Every family of published encoders takes every preparation of a protocol, and gives finite features."""

from pathlib import Path

import pytest
import torch

from morphem.benchmarks.preparations import PREPARATIONS
from morphem.extraction import pixels_of
from morphem.protocol_pixels import prepared, remarks
from morphem.types import ChannelBatch
from tests.test_embed_every_family import NAMED_BY_STUDY, RECORDS, _encoder, _panel, pytestmark  # noqa: F401

_TYPES = {"levels": torch.uint8, "counts": torch.uint16, "unit": torch.float32}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_family_takes_every_preparation(path: Path) -> None:
    encoder = _encoder(path)
    panel = _panel(encoder)
    if path.stem in NAMED_BY_STUDY:
        return
    kind = pixels_of(encoder)
    random = torch.Generator().manual_seed(0)
    top = {"levels": 255, "counts": 65535, "unit": 1}[kind]
    for name in PREPARATIONS:
        side = 48 if name.startswith("unresized") else 112
        planes = [(torch.rand(side, side, generator=random) * top).to(_TYPES[kind]) for _ in panel]
        other = prepared(encoder, name)
        found = other.features(ChannelBatch.from_planes([planes], [panel]))
        assert bool(torch.isfinite(found).all()), name
        assert found.shape == (len(panel) if encoder.per_channel else 1, encoder.embed_dim)
        assert other.provenance()["weights_fingerprint"] == encoder.provenance()["weights_fingerprint"]
        assert all(len(text) > 20 for text in remarks(encoder, name))
