"""Label images of cells: from a mask file through ingest and shards to the crop of one cell."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile

from morphem.cells.base import numbered
from morphem.cells.classical import ClassicalCells
from morphem.cells.readers import cells_from_mask
from morphem.data import layout, png
from morphem.data.crops import CropRule
from morphem.data.plan import CropPlan, spans
from morphem.data.reading import CropReader
from morphem.data.shards import ShardSet
from morphem.errors import DataError
from morphem.ingest.engine import ingest
from morphem.ingest.settings import IngestSettings
from morphem.sources.sheet import SheetSource
from tests import small_shards

SHEET = "file,imaging.multi_channel_id,imaging.channel_type\n"


def _objects(shape: tuple[int, int] = (40, 48)) -> np.ndarray:
    """Three objects whose numbers leave gaps and do not follow their places."""
    mask = np.zeros(shape, np.int32)
    mask[2:8, 3:9], mask[20:30, 10:16], mask[33:38, 30:44] = 70, 12, 500
    return mask


def test_cells_are_numbered_in_the_order_of_their_centres() -> None:
    cells = cells_from_mask(_objects(), 40, 48, "m")
    assert cells.objects is not None
    assert cells.objects.dtype == np.uint16
    assert sorted(np.unique(cells.objects)) == [0, 1, 2, 3]
    for number, (x, y) in enumerate(cells.centres.tolist()):
        assert cells.objects[y, x] == number + 1


def test_more_cells_than_16_bit_can_number_have_no_label_image() -> None:
    assert numbered(np.zeros((2, 2), np.int64), np.arange(1, 70_000)) is None
    assert numbered(np.zeros((2, 2), np.int64), np.zeros(0, np.int64)).tolist() == [[0, 0], [0, 0]]


def test_a_detector_gives_outlines_too() -> None:
    record = small_shards.image("a", ("nucleus",), (64, 64))
    plane = np.full((64, 64), 10, np.uint8)
    plane[10:26, 10:26], plane[40:56, 36:52] = 200, 220
    cells = ClassicalCells().find(replace(record, planes=[plane]))
    assert cells is not None
    assert cells.objects is not None
    assert [int(cells.objects[y, x]) for x, y in cells.centres] == [1, 2]


def _study(folder: Path, n_images: int = 5) -> SheetSource:
    """Images of two planes with a mask each."""
    (folder / "masks").mkdir()
    text = SHEET
    for k in range(n_images):
        for c, channel in enumerate(("nucleus", "actin")):
            pixels = np.random.default_rng([k, c]).integers(1, 5000, (40, 48)).astype(np.uint16)
            tifffile.imwrite(folder / f"i{k}_{c}.tif", pixels)
            text += f"i{k}_{c}.tif,i{k},{channel}\n"
        tifffile.imwrite(folder / "masks" / f"i{k}_0_nuclei.tif", np.roll(_objects(), k, axis=1).astype(np.uint16))
    (folder / "metadata.csv").write_text(text)
    return SheetSource(str(folder))


def test_ingest_keeps_the_label_images_through_parts_and_merges(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    source = _study(tmp_path / "study")
    ingest([source], tmp_path / "shards", IngestSettings(part_images=2, max_shard_images=3, pictures=False))
    shards = ShardSet(tmp_path / "shards")
    shards.verify()
    table = shards.table().to_pandas().drop_duplicates("key")
    assert len(table) == 5
    for k, row in enumerate(table.itertuples()):
        data = shards.reader().read(row.shard, int(row.masks_offset), int(row.masks_nbytes))
        found = png.decode(data, exact=True)
        expected = cells_from_mask(np.roll(_objects(), k, axis=1), 40, 48, "m").objects
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mask", ["zero", "background"])
def test_a_crop_shows_its_cell_alone(tmp_path: Path, mask: str) -> None:
    (tmp_path / "study").mkdir()
    ingest([_study(tmp_path / "study", 2)], tmp_path / "shards", IngestSettings(pictures=False))
    shards = ShardSet(tmp_path / "shards")
    plain, alone = (CropPlan(shards, CropRule("cell", None, 16, mask=m)) for m in ("none", mask))
    reads = CropReader([plain, alone], list(spans([plain, alone], range(2), 1000, 1000)))[0]
    whole, cut = (batch.planes.numpy() for batch in reads.batches)
    place, n_planes = 0, 0
    for image in range(2):
        objects = cells_from_mask(np.roll(_objects(), image, axis=1), 40, 48, "m").objects
        for cell, (y, x, h, w) in enumerate(alone.boxes(image)):
            numbers = objects[y : y + h, x : x + w]
            for _ in range(2):
                before, after = (planes[place : place + h * w].reshape(h, w) for planes in (whole, cut))
                level = round(float(np.median(before[numbers == 0]))) if mask == "background" else 0
                np.testing.assert_array_equal(after, np.where(numbers == cell + 1, before, level))
                place, n_planes = place + h * w, n_planes + 1
    assert n_planes == 2 * 2 * 3
    assert not np.array_equal(whole, cut)


def test_masking_without_label_images_is_refused_with_the_remedy(tmp_path: Path) -> None:
    root = small_shards.write(tmp_path, [small_shards.image("a", cells=2), small_shards.image("b", cells=0)])
    with pytest.raises(
        DataError, match=r"not known in 1 of 2 images \(the first is 'study--a'\).*--cells.*mask='none'"
    ):
        CropPlan(ShardSet(root), CropRule("cell", None, 8, mask="zero"))


def test_a_set_that_was_written_before_reads_as_if_no_outline_were_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(layout, "MASK_COLUMNS", ())
        root = small_shards.write(tmp_path, [small_shards.image("a", cells=2)])
    assert "masks_offset" not in pq.read_schema(tmp_path / layout.METADATA).names
    assert len(CropReader(*_all(CropPlan(ShardSet(root), CropRule("cell", None, 8))))[0].batches[0].rows) == 2
    with pytest.raises(DataError, match="outlines of cells are not known"):
        CropPlan(ShardSet(root), CropRule("cell", None, 8, mask="zero"))


def _all(plan: CropPlan) -> tuple[list[CropPlan], list[list[object]]]:
    return [plan], list(spans([plan], range(plan.n_images), 1000, 1000))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((4, 4), np.uint16), r"uint16 \(4, 4\)"),
        (np.zeros((40, 48), np.uint8), "must be uint16"),
        (np.full((40, 48), 3, np.uint16), "numbers up to 3; they must .* numbers up to 2"),
    ],
)
def test_masks_that_do_not_fit_the_image_are_refused(tmp_path: Path, masks: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        small_shards.write(tmp_path, [replace(small_shards.image("a", cells=2), masks=masks)])
