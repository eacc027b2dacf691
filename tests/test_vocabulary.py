import pytest

from morphem.errors import ChannelError
from morphem.vocabulary import Vocabulary

NAMES = ["Hoechst", "actin", "mito"]


def test_names_and_aliases_of_the_channel_vocabulary_are_resolved() -> None:
    assert Vocabulary(NAMES, {}, "error").names == ("nucleus", "actin", "mitochondria")


def test_a_type_outside_the_vocabulary_is_refused_with_what_is_in_it() -> None:
    with pytest.raises(ChannelError, match=r"'rna' is not in the vocabulary of this encoder \(nucleus, actin, mito"):
        Vocabulary(NAMES, {}, "error").number("rna", strict=False)
    with pytest.raises(ChannelError, match=r"leave the channel out, or set unknown to zero, mean or nearest\."):
        Vocabulary(NAMES, {}, "error").number("rna", strict=False)


def test_training_refuses_it_whatever_the_policy() -> None:
    with pytest.raises(ChannelError, match="'rna' is not in the vocabulary"):
        Vocabulary(NAMES, {}, "zero").number("rna", strict=True)


def test_an_alias_uses_the_number_of_another_type_in_training_too() -> None:
    assert Vocabulary(NAMES, {"nucleoli": "dapi"}, "error").number("nucleoli", strict=True) == 0


def test_zero_and_mean_stand_behind_the_table() -> None:
    assert Vocabulary(NAMES, {}, "zero").number("rna", strict=False) == 3
    assert Vocabulary(NAMES, {}, "mean").number("rna", strict=False) == 4


def test_nearest_takes_the_type_with_the_nearest_name() -> None:
    assert Vocabulary(["actin", "nucleus"], {}, "nearest").number("nucleoli", strict=False) == 1


def test_nearest_refuses_a_name_that_nothing_resembles() -> None:
    with pytest.raises(ChannelError, match="no name is near, and channel type 'b'"):
        Vocabulary(["mitochondria"], {}, "nearest").number("b", strict=False)


@pytest.mark.parametrize(
    ("names", "aliases", "message"),
    [
        ([], {}, "vocabulary is empty"),
        (["dapi", "nucleus"], {}, "names 'nucleus' twice"),
        (["nucleuss"], {}, "nearest: 'nucleus'"),
        (["nucleus"], {"actin": "rna"}, "'actin' stands for 'rna', but channel type 'rna' is not in the vocabulary"),
        (["nucleus", "actin"], {"actin": "nucleus"}, "'actin' is in the vocabulary itself"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(names, aliases, message) -> None:
    with pytest.raises(ChannelError, match=message):
        Vocabulary(names, aliases, "error")
