"""Every family of published encoders goes through shards, its own recipe, the slow reference, and maps."""

from pathlib import Path

import numpy as np
import pytest

from morphem import features
from morphem.data.record import ImageRecord
from morphem.data.schema import resolve_channel
from morphem.embed import embed_to_file
from morphem.embed_recipe import settings_for
from morphem.encoder import Encoder
from morphem.errors import MorphemError
from morphem.extraction import Extraction, check_panel, pixels_of
from morphem.maps.job import fit_colours, image_maps
from morphem.zoo.base import Checkpoint
from morphem.zoo.golden import read_golden
from morphem.zoo.verify import family_of
from tests import small_shards

FOLDER = Path(__file__).resolve().parents[1] / "shared" / "golden"
FOLDER = FOLDER if FOLDER.is_dir() else Path(__file__).resolve().parents[2] / "shared" / "golden"
RECORDS = sorted(path for path in FOLDER.glob("*.json") if path.name.count(".") == 1)
SIZE = (224, 448)
NAMED_BY_STUDY = {"dichavit_chammi"}
"""Encoders whose channels are named by study (`CP nucleus`), which no channel type of a shard set is."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="the golden files lie outside of the repository"),
]


def _encoder(path: Path) -> Encoder:
    golden = read_golden(path)
    _, family = family_of(golden)
    checkpoints = [Checkpoint.read(file) for file in golden.checkpoints()]
    return family.convert(next(one for one in checkpoints if family.recognises(one))).eval()


def _panel(encoder: Encoder) -> list[str]:
    """Channels that the encoder takes: its own, or some of a Cell Painting panel."""
    fixed = getattr(encoder.channels, "channels", ())
    own = getattr(getattr(encoder.channels, "vocabulary", None), "names", ())[:3]
    painting = ["nucleus", "endoplasmic reticulum", "rna", "actin golgi plasma membrane", "mitochondria"]
    for panel in (fixed, painting, painting[:2], own):
        try:
            types = [resolve_channel(name) for name in panel]
            assert types
            check_panel(encoder, types, pixels_of(encoder), (224, 224), "tried")
        except (MorphemError, AssertionError):
            continue
        return types
    return []


def _shards(folder: Path, panel: list[str]) -> str:
    """Two 16-bit images of blobs and noise in one well."""
    records = []
    for name in ("a", "b"):
        record = small_shards.image(name, panel, SIZE)
        generator = np.random.default_rng(list(name.encode()))
        planes = [generator.integers(500, 3000, SIZE, dtype=np.uint16) for _ in panel]
        for plane in planes:
            for y, x in generator.integers(0, 200, (9, 2)):
                plane[y : y + 30, x : x + 40] += 30_000
        limits = [(600.0, 33_000.0)] * len(panel)
        records.append(ImageRecord(name, planes, record.rows, panel, clip_limits=limits))
    return small_shards.write(folder, records)


def test_there_are_records() -> None:
    assert len(RECORDS) >= 25


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_family_embeds_shards_by_its_own_recipe(path: Path, tmp_path: Path) -> None:
    encoder = _encoder(path)
    panel = _panel(encoder)
    assert bool(panel) != (path.stem in NAMED_BY_STUDY)
    if not panel:
        return
    root = _shards(tmp_path / "shards", panel)
    settings = settings_for(encoder)
    report = embed_to_file(encoder, root, tmp_path / "f.parquet", settings, n_checks=2)
    table = features.read(report.path)
    assert np.isfinite(table.values).all()
    assert report.checked.n_rows == 2
    assert table.values.std(axis=0).max() > 0
    if encoder.channels.tokenised:
        run = Extraction(encoder, root, settings_for(encoder, skip_empty=None if settings.unit == "image" else "none"))
        maps = image_maps(run, 0, fit_colours(run, [0]), "last", heads=False)
        assert maps.attention.shape[1:] == SIZE
        assert np.isfinite(maps.attention).all()
        assert maps.shares is None or maps.shares.sum() == pytest.approx(1, abs=1e-4)
