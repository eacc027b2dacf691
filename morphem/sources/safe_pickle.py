"""Pickled pandas tables from strangers, read without running what they bring along.

A pickle is a program that may call any function. This reader lets it call those that build tables and arrays, by name,
and refuses all others.
"""

import pickle
from typing import Any

import pandas as pd

from morphem.errors import DataError
from morphem.readers.files import Files

_ALLOWED = {
    "builtins": {"slice", "bytearray", "set", "frozenset", "complex", "range"},
    "collections": {"OrderedDict"},
    "_codecs": {"encode"},
    "copyreg": {"_reconstructor"},
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "pandas": {"DataFrame", "Index", "RangeIndex", "MultiIndex", "Categorical", "CategoricalDtype", "StringDtype"},
    "pandas.core.frame": {"DataFrame"},
    "pandas.core.internals.managers": {"BlockManager"},
    "pandas.core.internals.blocks": {"new_block"},
    "pandas._libs.internals": {"_unpickle_block", "BlockPlacement"},
    "pandas._libs.arrays": {"__pyx_unpickle_NDArrayBacked", "NDArrayBacked"},
    "pandas.core.indexes.base": {"_new_Index", "Index"},
    "pandas.core.indexes.range": {"RangeIndex"},
    "pandas.core.indexes.multi": {"MultiIndex"},
    "pandas.core.arrays.string_": {"StringArray", "StringDtype"},
    "pandas.core.arrays.string_arrow": {"ArrowStringArray"},
    "pandas.core.arrays.categorical": {"Categorical"},
    "pandas.core.arrays.integer": {"IntegerArray", "Int64Dtype", "Int32Dtype"},
    "pandas.core.arrays.boolean": {"BooleanArray", "BooleanDtype"},
    "pandas.arrays": {"ArrowStringArray", "StringArray", "IntegerArray", "FloatingArray", "BooleanArray"},
    "pyarrow.lib": {"_restore_array", "chunked_array", "py_buffer", "type_for_alias", "string", "large_string"},
    "pandas.core.dtypes.dtypes": {"CategoricalDtype"},
}
_RENAMED = {
    ("pandas.core.indexes.numeric", "Int64Index"): pd.Index,
    ("pandas.core.indexes.numeric", "Float64Index"): pd.Index,
}
"""Classes of older versions of pandas, and what took their place."""
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # pickles of protocol 2 and below


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle asks for, if it is one of the parts of tables and arrays."""
        module = _OLD_MODULES.get(module, module)
        if (module, name) in _RENAMED:
            return _RENAMED[module, name]
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of a table")
        return super().find_class(module, name)


def read_frame(files: Files, name: str) -> pd.DataFrame:
    """Read a pickled table.

    Args:
        files: Of the location.
        name: Of the pickle.

    Raises:
        DataError: If it is no table, damaged, or holds anything but tables and arrays.
    """
    where = files.describe(name)
    try:
        with files.open(name) as stream:
            frame = _TableUnpickler(stream).load()
    except Exception as fault:  # a damaged pickle raises whatever it stumbles over
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise DataError(f"'{where}' cannot be read as a table: {reason}.") from fault
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"'{where}' holds a {type(frame).__name__} where a table is needed.")
    return frame
