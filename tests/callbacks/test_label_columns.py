"""Columns of a feature table by the names that users give them."""

import numpy as np
import pandas as pd
import pytest

from morphem.callbacks.label_columns import find_column, is_missing
from morphem.errors import DataError


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("treatment", "Metadata_treatment"),
        ("experiment.well", "Metadata_Well"),
        ("Metadata_Well", "Metadata_Well"),
        ("kind", "Metadata_Cell_kind"),
        ("Plate", "Metadata_Label_Plate"),
    ],
)
def test_labels_and_columns_of_the_schema_are_found(name: str, column: str) -> None:
    names = ["Metadata_treatment", "Metadata_Well", "Metadata_Cell_kind", "Metadata_kind"]
    metadata = pd.DataFrame(columns=[*names, "Metadata_Plate", "Metadata_Label_Plate"])
    assert find_column(name, metadata, "shards") == column


def test_an_unknown_label_is_refused_with_the_nearest() -> None:
    metadata = pd.DataFrame(columns=["Metadata_treatment", "Metadata_Well"])
    with pytest.raises(DataError, match="shards: No column 'treatmnt'; did you mean 'treatment'"):
        find_column("treatmnt", metadata, "shards")


def test_what_counts_as_missing() -> None:
    labels = pd.Series(["a", None, np.nan, "", " ", "unknown", "NaN", "none", 0, 1.5], dtype=object)
    assert is_missing(labels).tolist() == [False, True, True, True, True, True, True, False, False, False]
    assert is_missing(pd.Series([1.0, np.nan])).tolist() == [False, True]
