import pytest

from morphem.data.wells import is_well, normalise_well, row_name, well_name


@pytest.mark.parametrize(
    ("text", "well"),
    [
        ("A01", "A01"),
        ("a1", "A01"),
        ("A-1", "A01"),
        ("A - 01", "A01"),
        ("A001", "A01"),
        ("P24", "P24"),
        ("R02C03", "B03"),
        ("r02c03", "B03"),
        ("r2_c3", "B03"),
        ("0203", "B03"),
        ("1624", "P24"),
        ("AA12", "AA12"),
        ("af48", "AF48"),
        ("R27C1", "AA01"),
        (" B7 ", "B07"),
    ],
)
def test_spellings_of_a_well_become_one(text: str, well: str) -> None:
    assert normalise_well(text) == well
    assert is_well(text)
    assert normalise_well(well) == well


@pytest.mark.parametrize(
    "text", ["unknown", "", "001", "A", "A00", "A49", "AG01", "BA01", "0001", "3301", "A1B2", "slide 3"]
)
def test_what_is_no_well_stays_as_it_is(text: str) -> None:
    assert normalise_well(text) == text
    assert not is_well(text)


def test_rows_are_lettered_to_the_last_of_1536_wells() -> None:
    assert [row_name(n) for n in (1, 26, 27, 32)] == ["A", "Z", "AA", "AF"]
    assert well_name(2, 3) == "B03"
