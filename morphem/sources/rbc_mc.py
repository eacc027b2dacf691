"""RBC-MC as in the evaluation of CHAMMI-75: red blood cells of two laboratories, one small TIFF each.

Source: Doan et al. 2020, doi 10.1073/pnas.2001227117; layout of the public bucket of CHAMMI-75.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import pandas as pd

from morphem.errors import DataError
from morphem.readers.files import Files, open_files
from morphem.sources.table import TableSource
from morphem.sources.tapes import tiny_planes

_DOMAINS = ("Canadian", "Swiss")
_ENDING = ".ome.tif"


class RbcMcSource(TableSource):
    """Reads all cells as one study; labels are `domain` (Swiss or Canadian) and `class` (the folder of the file).

    Cells of the class Undecidable are kept; the benchmark leaves them out.

    Args:
        location: Folder, zip or address with the folders Swiss and Canadian.
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        DataError: If there is no such file.
    """

    priority: ClassVar[int] = 10

    def __init__(self, location: str, channel_aliases: Mapping[str, str] | None = None) -> None:
        files = open_files(location)
        names = _cells_in(files)
        if not names:
            raise DataError(
                f"'{location}' has no {'/ or '.join(_DOMAINS)}/ with */*{_ENDING}; give the folder of RBC-MC."
            )
        table = pd.DataFrame({"file": names}, dtype=str)
        parts = [name.split("/") for name in names]
        table = table.assign(
            **{
                "imaging.multi_channel_id": [name.removesuffix(_ENDING) for name in names],
                "experiment.study": "rbc-mc",
                "imaging.channel_type": "bright-field",
                "microscopy.type": "bright-field",
                "biology.organism": "Homo sapiens",
                "biology.cell_type": "red blood cell",
                "domain": [part[0] for part in parts],
                "class": [part[-2] for part in parts],
            }
        )
        super().__init__(files, table, channel_aliases=channel_aliases)

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether both folders are there with OME-TIFFs in folders of their own.

        Args:
            files: Of the location.
        """
        return {name.partition("/")[0] for name in _cells_in(files)} == set(_DOMAINS)

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write a cell of 16 x 20 pixels for each laboratory and return their source.

        Args:
            folder: Exists and is empty.
        """
        import tifffile

        for number, domain in enumerate(_DOMAINS):
            path = folder / domain / "donor1" / "SmoothDisc" / f"cell{number}{_ENDING}"
            path.parent.mkdir(parents=True)
            tifffile.imwrite(path, tiny_planes(1, number)[0], metadata={"axes": "YX"})
        return cls(str(folder))


def _cells_in(files: Files) -> list[str]:
    return [
        name
        for name in files.names()
        if name.endswith(_ENDING) and name.count("/") >= 2 and name.partition("/")[0] in _DOMAINS
    ]
