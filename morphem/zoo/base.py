"""What a family of pretrained encoders owes: records, a way from the published file to an `Encoder`, and a proof.

A family is one file: `records` says what its authors released, `recognises` and `convert` read their files, and
`replay` computes what a golden record claims, so that `morphem models verify` can prove a conversion anywhere.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from morphem import weights
from morphem.encoder import Encoder
from morphem.errors import WeightsError


@dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face hub.

    Attributes:
        hub_id: `owner/name`.
        file: The weights' file there.
        revision: Commit that is loaded where none is asked for; None where no commit has been verified, and then the
            newest one is taken and recorded in the encoder's `origin`.
        sidecars: Further files that the conversion reads, for example `config.json`.
    """

    hub_id: str
    file: str
    revision: str | None = None
    sidecars: tuple[str, ...] = ()


@dataclass(frozen=True)
class WebFile:
    """A file behind an address (release asset, Zenodo, bucket).

    Attributes:
        url: Where it is; https.
        sha256: Of the file; None where no hash is known: the first download is then remembered, and a later one of
            the same address must be the same file.
        sidecars: Addresses of further files that the conversion reads.
    """

    url: str
    sha256: str | None = None
    sidecars: tuple[str, ...] = ()


@dataclass(frozen=True)
class ByHand:
    """Weights that only a person can fetch (a form, a shared drive), or that each user trains.

    Attributes:
        page: Where to ask.
        file: What the file is called there.
        words: What to do, in a sentence.
    """

    page: str
    file: str
    words: str


@dataclass(frozen=True)
class Computed:
    """No file at all: `Pretrained.build` makes the encoder of what its constructor takes (controls).

    Attributes:
        words: Of what it is made, in a sentence.
    """

    words: str


@dataclass(frozen=True)
class Record:
    """Facts about one published set of weights.

    Attributes:
        name: Short name in the zoo: lower case, digits and dashes, unique among all families.
        summary: What it is, in one sentence.
        location: Where the file is.
        license: Of the weights: an SPDX name, or its title.
        restricted: Whether the licence restricts use (non-commercial, academic only) and has to be accepted once.
        citation: Publication, in a line.
        source: Repository, with commit.
        exported: Which network the file holds: `student`, `teacher`, `only` where there is one network, or `unknown`
            where the authors do not say.
        input_domain: Pixels that the weights were made for: `uint8`, `uint16`, `unit` (0 to 1), `any`, or `unknown`
            where the authors do not document it.
        preparation: What is done to pixels before the network, in words.
        native_size_px: Side of the square that the network was trained on; None for any.
        pooling: How tokens become the feature vector, in words.
        channel_rule: Which channels it takes, in words, for the table of `morphem models list`.
        embed_dim: Features per channel or per image.
        facts: What shapes cannot show and the constructor of the family takes for this record, for example `n_heads`.
        vocabulary: Channel names that it knows, in the authors' order and spelling; empty where it takes any channel.
    """

    name: str
    summary: str
    location: HubFile | WebFile | ByHand | Computed
    license: str
    restricted: bool
    citation: str
    source: str
    exported: Literal["student", "teacher", "only", "unknown"]
    input_domain: Literal["uint8", "uint16", "unit", "any", "unknown"]
    preparation: str
    native_size_px: int | None
    pooling: str
    channel_rule: str
    embed_dim: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A file of the authors as data, with the files that lie beside it.

    Attributes:
        content: What the file holds: tensors by name, or a nested training checkpoint.
        path: Where it was read from, for messages.
        sidecars: Parsed JSON files beside it by their plain name (`config.json`, `channel_map.json`), whatever prefix
            the file's stem puts before it.
    """

    content: Mapping[str, Any]
    path: Path
    sidecars: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, inert: Collection[str] = ()) -> Self:
        """Read safetensors or a file of `torch.save` (weights only), and the JSON files that belong to it.

        Args:
            path: The file.
            inert: Dotted names of classes beyond `morphem.leftovers` that the file may name; they are never built.

        Raises:
            WeightsError: If it is missing, damaged, or holds more than data.
        """
        found: dict[str, Any] = {}
        for name in ("config.json", "channel_map.json"):
            for place in (path.with_name(f"{path.stem}.{name}"), path.with_name(name)):
                if place.is_file():
                    try:
                        found[name] = json.loads(place.read_text(encoding="utf-8"))
                    except ValueError as fault:
                        raise WeightsError(f"{place} is damaged ({fault}); fetch it again.") from fault
                    break
        return cls(weights.read_any(path, inert), path, found)

    def entry(self, *names: str) -> Mapping[str, Any]:
        """Return the first of some entries that is a mapping, or the content itself where it has none of them.

        Args:
            names: Of entries, for example `state_dict`, `model`.
        """
        return next((self.content[name] for name in names if isinstance(self.content.get(name), Mapping)), self.content)

    def under(self, prefix: str, *names: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with a prefix, without it.

        Args:
            prefix: For example `module.backbone.`; empty for all.
            names: Entries to look in first, as `entry` takes them.
        """
        return {
            key.removeprefix(prefix): value
            for key, value in self.entry(*names).items()
            if isinstance(value, Tensor) and key.startswith(prefix)
        }


class Pretrained(ABC):
    """One family of published encoders, built from data alone: no code of the authors is run.

    Its constructor takes facts that shapes cannot show (heads, epsilons, rotary or not), each with a default: those of
    the first record.

    Attributes:
        records: What was released, the best known first.
        fixture: How the names of its golden records begin, where `from_golden` goes by the name. A record of another
            name is then told by its checkpoint.
        not_compared: Outputs of golden records that `replay` leaves out, with the reason: by `case.output`, by `case`
            for all outputs of a case, or by `output` for one in all cases. Printed by `verify` and in docs/zoo.md.
        generic: Whether the family reads what any code of a kind writes: it is taken where no other recognises a file.
    """

    records: ClassVar[tuple[Record, ...]]
    fixture: ClassVar[str] = ""
    not_compared: ClassVar[Mapping[str, str]] = MappingProxyType({})
    generic: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """Whether a file is of this family, by its names and shapes; `convert` may still refuse it.

        Args:
            checkpoint: Any.
        """

    @abstractmethod
    def convert(self, checkpoint: Checkpoint) -> Encoder:
        """Build the encoder from the authors' file, every tensor in its place.

        Args:
            checkpoint: The authors' file.

        Raises:
            WeightsError: If it is not of this family, or keys are missing or left over; keys that are left out on
                purpose (a head, a decoder) are named in the family's file.
        """

    def build(self) -> Encoder:
        """Make the encoder of a record whose location is `Computed`.

        Raises:
            WeightsError: If the family needs a file, as all but controls do.
        """
        raise WeightsError(f"{type(self).__name__} needs a file of weights; it computes nothing by itself.")

    @classmethod
    def tiny(cls) -> Checkpoint | None:
        """Return the smallest file that the authors could have written, random weights in it, for the checks.

        None where there is none; `morphem.testing.check_file` then needs a real one.
        """
        return None

    @abstractmethod
    def to_authors(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the weights under the authors' names: `convert` undone, bit for bit, without what it left out.

        `convert(Checkpoint(to_authors(encoder), path, sidecars))` gives the same encoder again: a flat mapping without
        the container around it is a form that every family reads.

        Args:
            encoder: What `convert` gave.
        """

    @classmethod
    @abstractmethod
    def from_golden(cls, record: Mapping[str, Any]) -> Self | None:
        """Return the family with the facts of a golden record, or None where the record is of another family.

        Args:
            record: Content of the `NAME.json` of a golden record (`fixture`, `peer`, `constructor`, ...).
        """

    @abstractmethod
    def replay(
        self,
        encoder: Encoder,
        checkpoint: Checkpoint,
        record: Mapping[str, Any],
        case: str,
        inputs: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """Compute what a case of a golden record claims, by the recipe of the authors.

        Args:
            encoder: What `convert` gave for the checkpoint; float32 or float64.
            checkpoint: The record's checkpoint, for cases that need more than the encoder (a decoder, a classifier).
            record: Content of the `NAME.json`.
            case: Name of the case.
            inputs: Its inputs, tensors already read from the `NAME.golden.safetensors`, other values as in the record.

        Returns:
            Outputs by the names of the case; an output that is left out is reported as not compared.
        """
