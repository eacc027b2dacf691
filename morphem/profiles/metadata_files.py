"""Plate maps and other tables of metadata: CSV, TSV and Parquet, read as texts and numbers without loss."""

from functools import lru_cache
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from morphem.errors import ConfigError, DataError
from morphem.profiles.frames import typed
from morphem.profiles.tables import suffix


def read_metadata(path: Path, step: str) -> pd.DataFrame:
    """Read a table of metadata.

    Args:
        path: Ends in .csv, .tsv (also .gz), .txt (tabs, as plate maps have it) or .parquet.
        step: Who asks.

    Raises:
        ConfigError: If the file is not there, or its ending is another.
        DataError: If it cannot be read, or has two columns of one name.
    """
    if not path.is_file():
        raise ConfigError(f"{step}: there is no table '{path}' (looked in {Path.cwd()}).")
    state = path.stat()
    return _read(path.resolve(), step, (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=4)  # a step that runs plate by plate asks for the same table again and again
def _read(path: Path, step: str, state: tuple[int, int]) -> pd.DataFrame:
    ending = ".tsv" if path.suffix == ".txt" else suffix(path)
    try:
        if ending == ".parquet":
            table: pd.DataFrame = pq.read_table(path).replace_schema_metadata(None).to_pandas()
            return table
        if ending not in (".csv", ".csv.gz", ".tsv", ".tsv.gz"):
            raise ConfigError(f"{step}: '{path.name}' must end in .csv, .tsv, .csv.gz, .tsv.gz, .txt or .parquet.")
        separator = "\t" if ending.startswith(".tsv") else ","
        frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, na_values=["", "NA", "NaN", "nan"])
    except (OSError, EOFError, pa.ArrowInvalid, pd.errors.ParserError, UnicodeDecodeError) as fault:
        raise DataError(f"{step}: {path} cannot be read as a table ({str(fault).splitlines()[0]}).") from fault
    return frame.apply(typed)
