"""Checks of data sources: what they read is complete, true to itself, and can be ingested."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from morphem.data.ingest import ingest, prepare
from morphem.data.record import ImageRecord, checked_rows
from morphem.data.schema import resolve_channel
from morphem.data.shards import ShardSet
from morphem.sources.base import Source
from morphem.spec import to_spec
from morphem.testing.contract import attempt, check_class, require


def check_source(cls: type[Source]) -> None:
    """Check that a source keeps its contract.

    Names are unique; every image has one row, name and channel type per plane; an image is the same however often and
    in which order it is read; the whole study can be ingested.

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
        for image in images:
            _check_image(cls, source, image)
        _check_repeatable(cls, source, images)
        _check_ingest(cls, source, images, Path(name) / "shards")


def _check_image(cls: type, source: Source, image: ImageRecord) -> None:
    where = f"image '{image.image_id}'"
    for i, row in enumerate(image.rows):
        study = row.get("experiment.study")
        require(study == source.study, cls, f"{where}: plane {i} says study '{study}' instead of '{source.study}'")
        kind = str(row.get("imaging.channel_type"))
        known = attempt(cls, f"{where}: plane {i}", lambda kind=kind: resolve_channel(kind))  # type: ignore[misc]
        require(known == kind, cls, f"{where}: plane {i} is called '{kind}', an alias; resolve it to '{known}'")
    kept = [np.array(plane) for plane in image.planes]
    prepared, _ = attempt(cls, f"{where} cannot be scaled to 8 bits", lambda: prepare(image, (0.1, 99.9)))
    attempt(cls, f"{where} is not complete", lambda: checked_rows(prepared, source.study))
    unchanged = all(np.array_equal(mine, theirs) for mine, theirs in zip(kept, image.planes, strict=True))
    require(unchanged, cls, f"{where} changes when it is scaled; give arrays that own their memory")


def _check_repeatable(cls: type[Source], source: Source, images: list[ImageRecord]) -> None:
    for image in reversed(images):
        again = source.load(image.image_id)
        same = len(again.planes) == len(image.planes) and all(
            mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
            for mine, theirs in zip(image.planes, again.planes, strict=True)
        )
        message = f"image '{image.image_id}' has other pixels when it is read again, in another order"
        require(same, cls, message)
        require(list(map(dict, again.rows)) == list(map(dict, image.rows)), cls, message.replace("pixels", "metadata"))


def _check_ingest(cls: type, source: Source, images: list[ImageRecord], output: Path) -> None:
    report = attempt(cls, "cannot be ingested", lambda: ingest([source], output))
    require(report.n_failures == 0, cls, f"{report.n_failures} images of tiny() fail to be ingested: {report}")
    shards = ShardSet(output)
    shards.verify()
    planes = sum(len(image.planes) for image in images)
    found = shards.table().num_rows
    require(found == planes, cls, f"{planes} planes went into the shards and {found} are there")
