"""What a family of pretrained encoders owes: a record, and a way from the published file to an `Encoder`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from morphem import weights
from morphem.encoder import Encoder


@dataclass(frozen=True)
class Record:
    """Facts about one published set of weights.

    Attributes:
        name: Short name in the zoo.
        summary: What it is, in one sentence.
        hub_id: `owner/name` on the Hugging Face hub.
        file: The weights' file there.
        revision: Commit that is loaded where none is asked for; None where no commit has been verified, and then the
            newest one is taken and recorded in the encoder's `origin`.
        license: Of the weights.
        source: Publication or repository.
        exported: Which network the file holds: `student`, `teacher`, or `unknown` where the authors do not say.
    """

    name: str
    summary: str
    hub_id: str
    file: str
    revision: str | None
    license: str
    source: str
    exported: str


class Pretrained(ABC):
    """One published encoder, built from data alone: no code of the authors is run.

    Attributes:
        record: Facts about it.
    """

    record: ClassVar[Record]

    @abstractmethod
    def convert(self, tensors: Mapping[str, Tensor], source: str) -> Encoder:
        """Build the encoder from the authors' tensors.

        Args:
            tensors: As the published file holds them.
            source: Where they come from, for messages.

        Raises:
            WeightsError: If they are not of this family, or keys are missing or left over.
        """

    def load(
        self,
        path: str | Path | None = None,
        *,
        revision: str | None = None,
        local_files_only: bool | None = None,
    ) -> Encoder:
        """Fetch and convert the weights.

        Args:
            path: The published file, or a folder that holds it; from the hub (or its cache) where not given.
            revision: Commit, tag or branch on the hub, where not the record's.
            local_files_only: Look in the hub's cache only; where not given, as `HF_HUB_OFFLINE` says.

        Raises:
            WeightsError: If the file is not to be had, damaged, holds more than weights, or does not fit.
        """
        origin = {"model": self.record.hub_id}
        if path is None:
            wanted = revision if revision is not None else self.record.revision
            folder = weights.fetch(self.record.hub_id, [self.record.file], wanted, local_files_only)
            file, origin["revision"] = folder / self.record.file, folder.name
        else:
            given = Path(path)
            file = given / self.record.file if given.is_dir() else given
            origin["model"] = f"{self.record.hub_id} ({file})"
        encoder = self.convert(weights.read_tensors(file), str(file))
        encoder.origin = origin
        encoder.card = {
            "exported": self.record.exported,
            "license": self.record.license,
            "base_model": self.record.hub_id,
            "source": self.record.source,
        }
        return encoder.eval()
