"""What a data source owes: the images of one study, one at a time."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from morphem.data.record import ImageRecord
from morphem.spec import Configurable


class Source(Configurable, ABC):
    """Images of one study, by name, with their metadata; what `morphem ingest` reads.

    A subclass takes the study's folder as its first argument. Loading one image must not depend on the others, so
    that a damaged image can be left out and named.

    Attributes:
        study: Name of the study, as in the column `experiment.study`.
    """

    study: str

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

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.image_ids())

    def images(self) -> Iterator[ImageRecord]:
        """Read all images in order."""
        return map(self.load, self.image_ids())
