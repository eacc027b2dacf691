"""The real studies through the command line, and every plane and metadata column compared with the originals."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from morphem.cli import main
from morphem.data import png
from morphem.data.schema import COLUMNS, resolve_channel, resolve_microscopy
from morphem.data.shards import ShardSet

STUDIES = (
    "bbbc014-nfkb",
    "bbbc016-transfluor",
    "bccd-blood",
    "hippocampal-neuron",
    "imc-mock",
    "moffat-human",
    "neubias-formats",
    "nf1-schwann",
    "pca-br00143976",
)


def _original(folder: Path, row: dict[str, str]) -> np.ndarray:
    """Read a plane by the plainest means: the whole file, then the index that the sheet gives."""
    path = folder / row["file"]
    if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
        whole = np.asarray(Image.open(path))
        return whole[..., int(row["plane_index"])] if row["plane_axis"] == "sample" else whole
    with tifffile.TiffFile(path) as file:
        if row["plane_axis"] == "page":
            return file.pages[int(row["plane_index"])].asarray()
        axes, whole = file.series[0].axes, file.series[0].asarray()
    if row["plane_axis"] == "C":
        whole = np.take(whole, int(row["plane_index"]), axis=axes.index("C"))
        axes = axes.replace("C", "")
    if "Z" in axes and row["geometry.z_slice"] == "all":
        whole = whole.max(axis=axes.index("Z"))
    return whole.reshape([side for side in whole.shape if side > 1] if whole.ndim > 2 else whole.shape)


def _clipped(plane: np.ndarray) -> np.ndarray:
    """The 0.1 and 99.9 percentiles become 0 and 255; a plane with nothing between them becomes zeros."""
    values = plane.astype(np.float64)
    low, high = np.percentile(values, (0.1, 99.9))
    if not high > low:
        return np.zeros(plane.shape, np.uint8)
    return np.rint((np.clip(values, low, high) - low) * (255.0 / (high - low))).astype(np.uint8)


def _well(text: str) -> str:
    """`B7` as it is stored: `B07`."""
    letters, digits = text.rstrip("0123456789"), text[len(text.rstrip("0123456789")) :]
    return f"{letters}{int(digits):02d}" if len(letters) == 1 and letters.isalpha() and digits else text


def _expected(row: dict[str, str], column: str, projected: bool) -> Any:
    value = row.get(column, "unknown") or "unknown"
    if column == "experiment.well":
        return _well(value)
    if column == "imaging.channel_type":
        return resolve_channel(value)
    if column == "microscopy.type":
        return resolve_microscopy(value)
    if column == "storage.path":
        return row["file"] if value == "unknown" else value
    if column == "geometry.z_slice" and projected:
        return "max"
    return int(value) if COLUMNS[column] == "int64" else value


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_every_plane_and_column_is_the_original_s(study: str, real_data: Path, tmp_path: Path) -> None:
    folder, root = real_data / study, tmp_path / "shards"
    assert main(["ingest", str(folder), "--output", str(root), "--workers", "1", "--no-report"]) == 0
    sheet = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    shards = ShardSet(root)
    table, reader = shards.table().to_pandas(), shards.reader()
    assert len(table) == len(sheet)
    stored = {(row["imaging.multi_channel_id"], int(row["imaging.channel"])): row for row in table.to_dict("records")}
    for row in sheet.to_dict("records"):
        mine = stored[row["imaging.multi_channel_id"], int(row["imaging.channel"])]
        found = png.decode(reader.read(mine["shard"], mine["plane_offset"], mine["plane_nbytes"]))
        np.testing.assert_array_equal(found, _clipped(_original(folder, row)), err_msg=row["file"])
        for column in COLUMNS:
            projected = mine["geometry.z_slice"] == "max"
            assert mine[column] == _expected(row, column, projected), (row["file"], column)
        for label in ("label", "dose"):
            if row.get(label):
                assert mine[label] == row[label]
