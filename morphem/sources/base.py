"""What a data source owes: the images of one study, one at a time, and a table of them without a look at the pixels."""

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd

from morphem.data.record import ImageRecord
from morphem.data.schema import UNKNOWN
from morphem.readers.files import Files
from morphem.spec import Configurable


class Source(Configurable, ABC):
    """Images of one study, by name, with their metadata; what `morphem ingest` reads.

    A subclass takes a location as its first argument: a folder, a zip, or an address of an object store. Loading one
    image must not depend on the others, so that a damaged image can be left out and named, and so that images can be
    read in any order by any process: a source is pickled.

    Attributes:
        study: Name of the study, as in the column `experiment.study`.
        priority: Where several sources recognise a location, the one of the highest priority reads it.
    """

    study: str
    priority: ClassVar[int] = 0

    @abstractmethod
    def image_ids(self) -> Sequence[str]:
        """Return the name of every image, unique, in the order in which they are to be written."""

    @abstractmethod
    def load(self, image_id: str) -> ImageRecord:
        """Read one image: pixels as the source stores them (any number type), its rows, and its cells if known.

        Args:
            image_id: One of `image_ids()`.

        Raises:
            MorphemError: If the image is damaged or is not what its metadata say, in one sentence.
        """

    @classmethod
    @abstractmethod
    def tiny(cls, folder: Path) -> Self:
        """Write the smallest study that works into an empty folder and return its source, for tests and docs.

        Args:
            folder: Exists and is empty.
        """

    def table(self) -> pd.DataFrame:
        """Return what is known of the images before their pixels are read, all values texts.

        One row per channel plane, where a source knows the planes: columns of the schema and labels. A source that
        defines no table of its own has one row per image, of channel type `unknown`; recipes can then select by
        name only.
        """
        ids = list(self.image_ids())
        return pd.DataFrame(
            {
                "experiment.study": [self.study] * len(ids),
                "imaging.multi_channel_id": ids,
                "imaging.channel_type": [UNKNOWN] * len(ids),
            },
            dtype=str,
        )

    @cached_property
    def unrecognised(self) -> Counter[str]:
        """Names of stains, and wells, that were not understood, with the number of planes."""
        return Counter()

    @cached_property
    def problems(self) -> list[tuple[str, str]]:
        """Images (or rows) that were left out before any pixel was read: name and reason. They count as bad images."""
        return []

    @cached_property
    def remarks(self) -> Counter[str]:
        """What else was odd in the study, with how often."""
        return Counter()

    def only(self, image_ids: Sequence[str]) -> Self:
        """Return the source with these images alone, small enough to be sent to another process.

        Args:
            image_ids: Some of `image_ids()`; a source may return itself with all its images.
        """
        return self

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.image_ids())

    def images(self) -> Iterator[ImageRecord]:
        """Read all images in order."""
        return map(self.load, self.image_ids())

    @classmethod
    def open(cls, location: str, **settings: Any) -> list[Self]:
        """Return the studies in a location, one source each.

        Args:
            location: A folder, a zip, or an address of an object store.
            settings: Passed to the constructor.
        """
        return [cls(location, **settings)]  # type: ignore[call-arg]  # every source takes its location first

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether a location has the layout of this source; looks at names and at one file at most.

        Args:
            files: Of the location.
        """
        return False


def copied(source: Source) -> Any:
    """Return a copy of a source that shares its settings but none of its counts."""
    other = copy.copy(source)
    for name in ("unrecognised", "problems", "remarks"):
        other.__dict__.pop(name, None)
    return other
