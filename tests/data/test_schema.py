import csv
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphem.data import schema
from morphem.data.schema import (
    COLUMNS,
    channel_vocabulary,
    complete,
    guess_channel,
    load_aliases,
    resolve_channel,
    resolve_microscopy,
    validate,
)
from morphem.errors import ChannelError, DataError
from tests.data.records import make_image


def row(**changes: object) -> dict[str, object]:
    return dict(make_image().rows[0]) | changes


def table(**changes: object) -> pd.DataFrame:
    return pd.DataFrame([complete(row()) | changes])


def test_there_are_22_columns_each_with_a_description() -> None:
    assert len(COLUMNS) == 22
    assert list(schema.DESCRIPTIONS) == list(COLUMNS)
    assert [name for name, kind in COLUMNS.items() if kind == "int64"] == [
        "imaging.channel",
        "geometry.width",
        "geometry.height",
        "geometry.channels",
    ]


@pytest.mark.parametrize(
    ("name", "channel_type"),
    [
        ("nucleus", "nucleus"),
        ("DNA", "nucleus"),
        ("Bright_Field", "bright-field"),
        ("RNA", "rna"),
        ("actin, Golgi, plasma membrane", "actin golgi plasma membrane"),
        ("AGP", "actin golgi plasma membrane"),
        (" Endoplasmic  Reticulum", "endoplasmic reticulum"),
    ],
)
def test_spellings_of_a_channel_type_resolve_to_one_name(name: str, channel_type: str) -> None:
    assert resolve_channel(name) == channel_type


def test_every_name_and_alias_of_the_vocabulary_resolves_to_its_type() -> None:
    for name, entry in channel_vocabulary().items():
        assert name == name.lower()
        assert entry.source
        assert {resolve_channel(spelling) for spelling in (name, *entry.aliases)} == {name}


def test_an_unknown_channel_type_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ChannelError, match=r"No channel type 'mitocondria'; nearest: .*'mitochondria'"):
        resolve_channel("mitocondria")


def test_extra_aliases_go_before_the_vocabulary() -> None:
    assert resolve_channel("Ch 01", {"ch01": "mito"}) == "mitochondria"
    assert resolve_channel("er", {"ER": "rna"}) == "rna"


def test_one_spelling_with_two_meanings_is_refused() -> None:
    with pytest.raises(ChannelError, match="'Dna' stands for 'a' and for 'b'"):
        schema._by_spelling({"a": ("dna",), "b": ("Dna",)}, "table")


def test_an_unknown_microscopy_type_is_refused_with_the_nearest() -> None:
    assert resolve_microscopy("Brightfield") == "bright-field"
    with pytest.raises(DataError, match="did you mean 'fluorescence'"):
        resolve_microscopy("flourescence")


def test_a_completed_row_has_all_columns_in_order_and_unknown_for_what_is_missing() -> None:
    full = complete({"dose": 3, **row(**{"experiment.plate": float("nan"), "experiment.well": ""})})
    assert list(full) == [*COLUMNS, "dose"]
    assert full["experiment.plate"] == full["experiment.well"] == full["biology.organism"] == "unknown"


@pytest.mark.parametrize("value", ["x", None, 0, -1, 1.5, float("nan")])
def test_a_wrong_whole_number_is_refused_with_its_column(value: object) -> None:
    with pytest.raises(DataError, match=r"geometry\.width.*whole number"):
        complete(row(**{"geometry.width": value}))


@pytest.mark.parametrize("column", ["imaging.channel_type", "imaging.multi_channel_id"])
def test_a_row_without_channel_type_or_image_is_refused(column: str) -> None:
    with pytest.raises(DataError, match=column):
        complete(row(**{column: None}))


def test_a_completed_table_is_valid() -> None:
    completed = table()
    validate(completed)
    assert len(completed) > 0
    assert set(COLUMNS) <= set(completed.columns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"geometry.width": "12"}, r"row 0 of 'geometry\.width' is '12'"),
        ({"experiment.plate": None}, r"row 0 of 'experiment\.plate' is None"),
        ({"experiment.plate": np.nan}, r"row 0 of 'experiment\.plate' is nan"),
        ({"experiment.plate": 7}, r"row 0 of 'experiment\.plate' is 7"),
        ({"imaging.channel_type": "DNA"}, "spelled 'nucleus'"),
        ({"imaging.channel_type": "zzz"}, "No channel type 'zzz'"),
        ({"microscopy.type": "Fluorescence"}, "spelled 'fluorescence'"),
    ],
)
def test_a_table_with_a_fault_is_refused_with_the_place(changes: dict[str, object], message: str) -> None:
    with pytest.raises((DataError, ChannelError), match=message):
        validate(table(**changes))


def test_a_table_without_a_column_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"no column 'imaging.panel'"):
        validate(table().drop(columns="imaging.panel"))


def test_the_table_of_scales_has_sides_and_sources_for_75_studies() -> None:
    text = files("morphem.data").joinpath("study_scales.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len({line["study"] for line in rows}) == 75
    for line in rows:
        assert line["scale_1"] == "full" or int(line["scale_1"]) > 0
        assert line["scale_2"] in ("", "full") or int(line["scale_2"]) > 0
        assert line["source"]


# Channel types of https://github.com/CaicedoLab/CHAMMI-75/blob/e325bea4/utils/segmentation/config.tsv
PUBLISHED = (
    "er",
    "microtubules",
    "nucleus",
    "protein",
    "cell body",
    "sub-nuclear",
    "cytosol",
    "cytoskeleton",
    "proliferation",
    "golgi",
    "mitochondria",
    "rna",
    "assorted",
    "bright-field",
    "membrane",
    "centrosomes",
    "circadian rhythm",
    "agp",
    "differential interference contrast (DIC)",
    "b",
    "g",
    "r",
    "dark-field",
    "phase-contrast",
    "KTR",
    "electron microscope",
    "endoplasmic reticulum",
    "golgi body",
    "RNA",
)


def test_every_channel_type_of_chammi_75_is_known_and_none_falls_together_with_another() -> None:
    types = {resolve_channel(name) for name in PUBLISHED}
    assert len(types) == 26  # three have two spellings
    assert not types & {"other", "unknown"}


@pytest.mark.parametrize(
    ("name", "channel_type"),
    [
        ("DAPI", "nucleus"),
        ("Hoechst 33342", "nucleus"),
        ("nuclear stain", "nucleus"),
        ("DNA (DAPI)", "nucleus"),
        ("w1 HOECHST-33342 405nm", "nucleus"),
        ("OrigDNA", "nucleus"),
        ("OrigBrightfield", "bright-field"),
        ("Mitotracker Deep Red", "mitochondria"),
        ("Alexa Fluor 568 Phalloidin", "actin"),
        ("WGA + Phalloidin", "actin golgi plasma membrane"),
        ("SYTO 14", "rna"),
        ("GFP-Tubulin", "microtubules"),
        ("gamma-tubulin", "centrosome"),
        ("anti-LAMP1 antibody", "lysosome"),
        ("antibody 7", "protein"),
        ("Red", "r"),
    ],
)
def test_names_of_stains_tell_their_channel_type(name: str, channel_type: str) -> None:
    assert guess_channel(name) == channel_type


@pytest.mark.parametrize("name", ["Alexa 488", "Cy5", "GFP", "ER, RNA", "Channel 1", "deep red", "NF-kB p65", "", "12"])
def test_names_that_tell_nothing_or_two_things_are_not_guessed(name: str) -> None:
    assert guess_channel(name) is None


def test_aliases_of_the_user_go_before_a_guess() -> None:
    assert guess_channel("Alexa 488", {"alexa-488": "ER"}) == "endoplasmic reticulum"
    assert guess_channel("DAPI (old)", {"DAPI (old)": "rna"}) == "rna"
    with pytest.raises(ChannelError, match="No channel type 'zzz'"):
        guess_channel("w1", {"w1": "zzz"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "w1: DAPI\nyes: er\n488: Mito\n"),
        ("a.csv", "name,channel_type\nw1,DAPI\nyes,er\n488,Mito\n"),
    ],
)
def test_aliases_are_read_from_yaml_and_csv_with_names_as_written(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    aliases = load_aliases(tmp_path / name)
    assert aliases == {"w1": "DAPI", "yes": "er", "488": "Mito"}
    assert resolve_channel("YES", aliases) == "endoplasmic reticulum"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "- w1\n", "must be a YAML mapping"),
        ("a.yaml", "", "must be a YAML mapping"),
        ("a.yaml", "w1: [a, b]\n", "must be a YAML mapping"),
        ("a.yaml", "w1: {\n", "cannot be read"),
        ("a.csv", "stain,type\nw1,er\n", "must be a YAML mapping"),
        ("a.yaml", "w1: er\nw1: rna\n", "says that 'w1' is 'er' and 'rna'"),
        ("a.yaml", "w1: mitocondria\n", "'w1': No channel type 'mitocondria'; nearest: 'mitochondria'"),
    ],
)
def test_a_wrong_file_of_aliases_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((DataError, ChannelError), match=message):
        load_aliases(tmp_path / name)


def test_a_missing_file_of_aliases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.yaml' cannot be read"):
        load_aliases(tmp_path / "a.yaml")
