"""Checks of data sources: what they read is complete, true to itself, and can be ingested."""

import pickle
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from morphem.data.record import ImageRecord, checked_rows
from morphem.data.schema import resolve_channel
from morphem.data.shards import ShardSet
from morphem.ingest import Preparation, ingest
from morphem.ingest.prepare import prepare
from morphem.readers.files import open_files
from morphem.sources.base import Source
from morphem.spec import to_spec
from morphem.testing.contract import attempt, check_class, require

_TABLE_COLUMNS = ("experiment.study", "imaging.multi_channel_id", "imaging.channel_type")


def check_source(cls: type[Source]) -> None:
    """Check that a source keeps its contract.

    Names are unique; every image has one row, name and channel type per plane; an image is the same however often, in
    which order and in which process it is read; the plane table names the same images; the whole study can be ingested.

    Args:
        cls: The class; its `tiny(folder)` is what is checked.

    Raises:
        ContractError: Names the class, what it broke and why that matters.
    """
    check_class(cls, Source)
    with TemporaryDirectory() as name:
        folder = Path(name) / "study"
        folder.mkdir()
        source = attempt(cls, "tiny() cannot be built", lambda: cls.tiny(folder))
        require(
            isinstance(source.study, str) and bool(source.study), cls, f"has study={source.study!r}, which is no name"
        )
        attempt(cls, "cannot be written into a config", lambda: to_spec(source))
        ids = list(source.image_ids())
        require(bool(ids), cls, "tiny() writes a study without images")
        require(len(set(ids)) == len(ids), cls, "gives two images one name; one of them would be lost")
        require(source.count == len(ids), cls, f"says count={source.count} but names {len(ids)} images")
        images = attempt(cls, "cannot read its own images", lambda: list(source.images()))
        read = [image.image_id for image in images]
        require(read == ids, cls, f"names the images {ids[:3]}... but reads {read[:3]}...")
        _check_table(cls, source, ids)
        _check_layout(cls, folder)
        for image in images:
            _check_image(cls, source, image)
        _check_repeatable(cls, source, images)
        _check_ingest(cls, source, images, Path(name) / "shards")


def _check_table(cls: type[Source], source: Source, ids: list[str]) -> None:
    """The plane table must name the images in order, in texts, with the columns that recipes select by."""
    table = attempt(cls, "has no plane table", source.table)
    missing = [column for column in _TABLE_COLUMNS if column not in table.columns]
    require(not missing, cls, f"has a plane table without {missing}; recipes select by them")
    named = table["imaging.multi_channel_id"].drop_duplicates().tolist()
    require(named == ids, cls, f"has a plane table of the images {named[:3]}... instead of {ids[:3]}...")
    odd = [str(column) for column in table.columns if not table[column].map(lambda value: isinstance(value, str)).all()]
    require(not odd, cls, f"has a plane table with values that are no texts in {odd}; write numbers as texts")
    studies = set(table["experiment.study"])
    require(studies == {source.study}, cls, f"has a plane table of the studies {sorted(studies)} instead of its own")


def _check_layout(cls: type[Source], folder: Path) -> None:
    """Asked whether it knows a layout, a source answers, whatever is there."""
    empty = folder.parent / "empty"
    empty.mkdir()
    for place in (folder, empty):
        answer = attempt(cls, "fails when it is asked for a layout", partial(cls.recognises, open_files(str(place))))
        require(
            isinstance(answer, bool), cls, f"answers {answer!r} when it is asked for a layout; True or False is needed"
        )


def _check_image(cls: type, source: Source, image: ImageRecord) -> None:
    where = f"image '{image.image_id}'"
    for i, row in enumerate(image.rows):
        study = row.get("experiment.study")
        require(study == source.study, cls, f"{where}: plane {i} says study '{study}' instead of '{source.study}'")
        kind = str(row.get("imaging.channel_type"))
        known = attempt(cls, f"{where}: plane {i}", lambda kind=kind: resolve_channel(kind))  # type: ignore[misc]
        require(known == kind, cls, f"{where}: plane {i} is called '{kind}', an alias; resolve it to '{known}'")
    kept = [np.array(plane) for plane in image.planes]
    prepared = attempt(cls, f"{where} cannot be scaled to 8 bits", lambda: prepare(image, Preparation()))
    attempt(cls, f"{where} is not complete", lambda: checked_rows(prepared, source.study))
    unchanged = all(np.array_equal(mine, theirs) for mine, theirs in zip(kept, image.planes, strict=True))
    require(unchanged, cls, f"{where} changes when it is scaled; give arrays that own their memory")


def _check_repeatable(cls: type[Source], source: Source, images: list[ImageRecord]) -> None:
    for image in reversed(images):
        alone = attempt(cls, "cannot be sent to another process", partial(_sent, source, image.image_id))
        again = alone.load(image.image_id)
        same = len(again.planes) == len(image.planes) and all(
            mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
            for mine, theirs in zip(image.planes, again.planes, strict=True)
        )
        message = f"image '{image.image_id}' has other pixels when it is read again, in another order or process"
        require(same, cls, message)
        require(list(map(dict, again.rows)) == list(map(dict, image.rows)), cls, message.replace("pixels", "metadata"))


def _sent(source: Source, image_id: str) -> Source:
    """The source of one image as a worker process gets it."""
    sent: Source = pickle.loads(pickle.dumps(source.only([image_id])))
    return sent


def _check_ingest(cls: type, source: Source, images: list[ImageRecord], output: Path) -> None:
    report = attempt(cls, "cannot be ingested", lambda: ingest([source], output))
    require(report.n_failures == 0, cls, f"{report.n_failures} images of tiny() fail to be ingested: {report}")
    shards = ShardSet(output)
    shards.verify()
    planes = sum(len(image.planes) for image in images)
    found = shards.table().num_rows
    require(found == planes, cls, f"{planes} planes went into the shards and {found} are there")
