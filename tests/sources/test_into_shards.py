"""CHAMMI-75 and its evaluation sets all the way into a shard set and out of it again."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphem.data.png import decode
from morphem.data.schema import COLUMNS
from morphem.data.shards import ShardSet
from morphem.ingest import IngestSettings, Preparation, ingest
from morphem.sources.base import Source
from morphem.sources.cellphie import CellPHIESource
from morphem.sources.chammi import ChammiSource
from morphem.sources.chammi75 import Chammi75Source
from morphem.sources.hpav23 import HPAv23Source
from morphem.sources.idr0017 import IDR0017Source
from morphem.sources.jumpcp1 import JumpCP1Source
from morphem.sources.rbc_mc import RbcMcSource
from morphem.sources.tapes import TapeSource
from tests.sources.chammi75_layout import GUIDANCE, TRAIN, write_layout

AS_THEY_ARE = IngestSettings(Preparation(clip=None, quality=False))


def compare(root: Path, sources: list[Source]) -> None:
    """Compare every plane, field, label and cell of a shard set with what the sources read."""
    shards = ShardSet(str(root))
    table = shards.table().to_pandas()
    cells = shards.cells()
    points = pd.DataFrame() if cells is None else cells.to_pandas()
    written = 0
    for source in sources:
        for image in source.images():
            own = (table["experiment.study"] == source.study) & (table["imaging.multi_channel_id"] == image.image_id)
            rows = table[own].sort_values("imaging.channel").to_dict("records")
            assert len(rows) == len(image.planes)
            for row, said, plane, name in zip(rows, image.rows, image.planes, image.channel_names, strict=True):
                stored = decode(shards.reader().read(row["shard"], row["plane_offset"], row["plane_nbytes"]))
                assert np.array_equal(stored, plane)
                for column in COLUMNS:
                    assert str(row[column]) == str(said[column] or "unknown"), column
                for label in set(said) - set(COLUMNS):
                    assert row[label] == (said[label] or None), label
                assert row["channel_name"] == name
                written += 1
            if image.cells is not None and len(image.cells):
                own_cells = points[points["key"] == rows[0]["key"]].sort_values("cell")
                assert own_cells[["x", "y"]].to_numpy().tolist() == image.cells.tolist()
                for label, values in (image.cell_labels or {}).items():
                    assert own_cells[label].tolist() == list(values)
            else:
                assert not rows[0]["n_cells"] or image.cells is not None
    assert written == len(table)


def test_a_zip_of_chammi75_becomes_shards_with_counted_faults(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    layout = write_layout(tmp_path / "set")
    (layout.root / GUIDANCE / "idr0002" / "plate 1" / "a+b[0].x-ch0.safetensors").unlink()
    (layout.root / GUIDANCE / "idr0002" / "plate 1" / "a+b[0].x-ch1.safetensors").unlink()
    images, cells = tmp_path / "images.zip", tmp_path / "cells.zip"
    layout.zipped(TRAIN, images)
    layout.zipped(GUIDANCE, cells)
    sources = Chammi75Source.open(str(images), metadata=str(layout.metadata), guidance=str(cells))
    report = ingest(sources, tmp_path / "shards", AS_THEY_ARE)
    compare(tmp_path / "shards", list(sources))
    first, second = report.studies
    assert (first.images, first.planes, first.cells) == (2, 6, 4)
    assert (second.images, second.planes, second.cells) == (2, 4, 2)
    assert dict(first.remarks) == {"background point in row 0 of the guidance dropped": 2}
    assert dict(second.remarks) == {
        "background point in row 0 of the guidance dropped": 1,
        "no guidance file (cells unknown)": 1,
    }
    assert not first.failures
    json.dumps(first.to_json())


@pytest.mark.parametrize(
    "cls",
    [CellPHIESource, ChammiSource, HPAv23Source, IDR0017Source, JumpCP1Source, RbcMcSource, TapeSource],
)
def test_each_set_becomes_shards(cls: type[Source], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    source = cls.tiny(tmp_path / "data")
    report = ingest([source], tmp_path / "shards", AS_THEY_ARE)
    assert report.studies[0].images == source.count
    compare(tmp_path / "shards", [source])
