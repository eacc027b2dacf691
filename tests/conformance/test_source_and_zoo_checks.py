"""The checks of sources and pretrained encoders catch what they are for; the failure names it."""

from dataclasses import replace

import numpy as np
import pytest

from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.sources.sheet import SheetSource
from morphem.testing import ContractError, check_pretrained, check_source
from morphem.zoo.base import Checkpoint
from tests.zoo.tiny_family import Tiny

pytestmark = pytest.mark.usefixtures("odd_plugins")


class Repeats(SheetSource):
    """Names an image twice."""

    def image_ids(self):
        return [*super().image_ids(), super().image_ids()[0]]


class Unstable(SheetSource):
    """Reads other pixels each time."""

    def load(self, image_id):
        image = super().load(image_id)
        draw = np.random.default_rng()
        return type(image)(
            **{**vars(image), "planes": [p + draw.integers(1, 9, p.shape, p.dtype) for p in image.planes]}
        )


class Aliased(SheetSource):
    """Leaves aliases in its rows."""

    def load(self, image_id):
        image = super().load(image_id)
        rows = [{**row, "imaging.channel_type": "DNA"} for row in image.rows]
        return type(image)(**{**vars(image), "rows": rows})


class OtherStudy(SheetSource):
    """Says another study in its rows."""

    def load(self, image_id):
        image = super().load(image_id)
        return type(image)(**{**vars(image), "rows": [{**row, "experiment.study": "else"} for row in image.rows]})


class OtherTable(SheetSource):
    """Has a plane table in another order than its images."""

    def table(self):
        return super().table().iloc[::-1]


class NumbersInTable(SheetSource):
    """Has numbers in its plane table."""

    def table(self):
        return super().table().assign(dose=1.5)


class BareTable(SheetSource):
    """Has a plane table without channel types."""

    def table(self):
        return super().table().drop(columns="imaging.channel_type")


class Fragile(SheetSource):
    """Fails where it meets a layout that is not its own."""

    @classmethod
    def recognises(cls, files):
        return files.names()[0] == "metadata.csv"


class Bound(SheetSource):
    """Cannot be sent to another process."""

    def only(self, image_ids):
        part = super().only(image_ids)
        part.bound = lambda: None
        return part


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Repeats, "gives two images one name"),
        (Unstable, "has other pixels when it is read again"),
        (Aliased, "is called 'DNA', an alias; resolve it to 'nucleus'"),
        (OtherStudy, "says study 'else' instead of 'tiny'"),
        (OtherTable, "has a plane table of the images"),
        (NumbersInTable, r"values that are no texts in \['dose'\]"),
        (BareTable, r"has a plane table without \['imaging\.channel_type'\]"),
        (Fragile, "fails when it is asked for a layout: IndexError"),
        (Bound, "cannot be sent to another process"),
    ],
)
def test_a_bad_source_is_caught(cls, message):
    with pytest.raises(ContractError, match=message):
        check_source(cls)


class NoLicense(Tiny):
    """Says nothing of its licence."""

    records = (replace(Tiny.records[0], license=""),)


class NeedsArgument(Tiny):
    """Cannot be built without an argument."""

    def __init__(self, size: int) -> None:
        super().__init__()


class ClaimsAnything(Tiny):
    """Recognises whatever it is shown."""

    @classmethod
    def recognises(cls, checkpoint):
        return True


class TakesAnything(Tiny):
    """Converts whatever it is given."""

    def convert(self, checkpoint):
        return Encoder.tiny()


class OddName(Tiny):
    """Has a record that no command line can name."""

    records = (replace(Tiny.records[0], name="My Model"),)


class StrangeFact(Tiny):
    """Has a record with a fact that its constructor does not take."""

    records = (replace(Tiny.records[0], facts={"depth": 3}),)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NoLicense, "its record leaves license empty"),
        (NeedsArgument, "cannot be built without the argument 'size'"),
        (ClaimsAnything, r"recognises\(\) claims no tensors at all"),
        (TakesAnything, r"convert\(\) takes no tensors at all without an error"),
        (OddName, "names are lower case"),
        (StrangeFact, "facts that its constructor does not take: depth"),
    ],
)
def test_a_bad_family_of_pretrained_encoders_is_caught(cls, message):
    with pytest.raises(ContractError, match=message):
        check_pretrained(cls)


class Lenient(Tiny):
    """Leaves random weights where tensors are missing."""

    def convert(self, checkpoint):
        encoder = Encoder.tiny()
        tensors = checkpoint.under("net.", "state_dict")
        if not tensors:
            raise WeightsError("nothing")
        encoder.load_state_dict(tensors, strict=False)
        return encoder.eval()


class Mute(Tiny):
    """Refuses, and does not say what is missing."""

    def convert(self, checkpoint):
        try:
            return super().convert(checkpoint)
        except WeightsError:
            raise WeightsError("the file does not fit") from None


class Rounds(Tiny):
    """Rounds tensors on the way back."""

    def to_authors(self, encoder):
        return {name: tensor.half().float() for name, tensor in super().to_authors(encoder).items()}


class Renames(Tiny):
    """Gives tensors back under names that the file does not have."""

    def convert(self, checkpoint):
        tensors = {name.replace("other.", "net."): tensor for name, tensor in checkpoint.entry("state_dict").items()}
        return super().convert(Checkpoint(tensors, checkpoint.path))

    def to_authors(self, encoder):
        return {name.replace("net.", "other."): tensor for name, tensor in super().to_authors(encoder).items()}


class InTraining(Tiny):
    """Gives an encoder that still trains."""

    def convert(self, checkpoint):
        return super().convert(checkpoint).train()


class OneHead(Tiny):
    """Takes a number of heads and does nothing with it."""

    def __init__(self, n_heads: int = 2) -> None:
        super().__init__()
        self.n_heads = n_heads


class Crashes(Tiny):
    """Runs into an error of Python where a tensor is missing."""

    def convert(self, checkpoint):
        tensors = checkpoint.under("net.", "state_dict")
        if tensors:
            _ = [tensors[name] for name in Encoder.tiny().state_dict()]
        return super().convert(checkpoint)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Lenient, "takes a file without '.*' without a word; part of the network would be random"),
        (Mute, "refuses a file without '.*' without naming it: the file does not fit"),
        (Rounds, "changes tensors on the way to the authors' names and back"),
        (Renames, r"to_authors\(\) gives 'other\..*', which the file does not hold"),
        (InTraining, "gives an encoder in training mode"),
        (OneHead, "gives the same features with 1 heads as with 2"),
        (Crashes, "fails on a file without '.*' with KeyError"),
    ],
)
def test_a_family_that_mistreats_its_files_is_caught(cls, message):
    with pytest.raises(ContractError, match=message):
        check_pretrained(cls)


def test_a_family_that_keeps_the_contract_passes():
    assert check_pretrained(Tiny) is True
