"""The checks of sources and pretrained encoders catch what they are for; the failure names it."""

from dataclasses import replace

import numpy as np
import pytest

from morphem.encoder import Encoder
from morphem.sources.sheet import SheetSource
from morphem.testing import ContractError, check_pretrained, check_source
from morphem.zoo.chammi75 import DINOBagOfChannels

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


class NoLicense(DINOBagOfChannels):
    """Says nothing of its licence."""

    records = (replace(DINOBagOfChannels.records[0], license=""),)


class NeedsArgument(DINOBagOfChannels):
    """Cannot be built without an argument."""

    def __init__(self, size: int) -> None:
        super().__init__()


class ClaimsAnything(DINOBagOfChannels):
    """Recognises whatever it is shown."""

    @classmethod
    def recognises(cls, checkpoint):
        return True


class TakesAnything(DINOBagOfChannels):
    """Converts whatever it is given."""

    def convert(self, checkpoint):
        return Encoder.tiny()


class OddName(DINOBagOfChannels):
    """Has a record that no command line can name."""

    records = (replace(DINOBagOfChannels.records[0], name="My Model"),)


class StrangeFact(DINOBagOfChannels):
    """Has a record with a fact that its constructor does not take."""

    records = (replace(DINOBagOfChannels.records[0], facts={"depth": 3}),)


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
