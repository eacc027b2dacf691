"""CHAMMI-75: a metadata CSV, one PNG per channel plane in a folder, zip or bucket, and guidance files with cells.

Source: layout of the public bucket `chammi-data`, prefix `CHAMMI-75/`, and the paper (ICLR 2026, arXiv 2512.20833).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self
from urllib.parse import unquote
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.cells.readers import GuidanceReader, guidance_name
from morphem.data.record import ImageRecord
from morphem.data.schema import UNKNOWN
from morphem.errors import DataError
from morphem.readers.files import Files, FolderFiles, open_files
from morphem.sources.large_sheets import rows_of_study, studies_of
from morphem.sources.sheets import columns_of
from morphem.sources.table import TableSource, or_else

METADATA = "metadata.csv"
NO_GUIDANCE = "no guidance file (cells unknown)"
NO_FILE = "path of the metadata that matches no file (image left out)"
OTHER_ROOT = "paths of the metadata begin with another folder than the files"
_IMAGE, _PATH, _TYPE = "imaging.multi_channel_id", "storage.path", "imaging.channel_type"
_SIZES = ("geometry.width", "geometry.height", "geometry.channels")


class Chammi75Source(TableSource):
    """Reads one study of CHAMMI-75, of the large or the small set, without unpacking anything to disk.

    `storage.path` of the metadata is a path whose first folder is the set's name and whose second is the study. The
    PNGs may lie under that path or under any other first folder. Faults that the published files are known for are
    counted: paths that match no file (the image is left out), images without guidance, a background point as the first
    cell (dropped, see `cells_from_guidance`), sizes that are not those of the pixels (the pixels are right).

    Args:
        location: Folder, zip or address with the PNGs.
        metadata: Path or address of the CSV; by default the one `*metadata.csv` in the location or beside a zip.
        guidance: Folder, zip or address with the guidance files; by default those in the location, if any.
        study: Which study to read; needed where the CSV holds several (`open` gives one source for each).
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        ChannelError: If a channel type is not in the vocabulary.
        DataError: If the CSV is missing or malformed, or none of the study's PNGs is there.
    """

    priority: ClassVar[int] = 5

    def __init__(
        self,
        location: str,
        metadata: str | None = None,
        guidance: str | None = None,
        study: str | None = None,
        channel_aliases: Mapping[str, str] | None = None,
    ) -> None:
        files = _shared(location)
        beside, sheet = _metadata_of(files, metadata)
        study = study or _only_study(beside, sheet)
        rows, bad = rows_of_study(beside, sheet, study, needed=("experiment.study", _IMAGE, _TYPE, _PATH))
        paths = rows[_PATH].tolist()
        prefix, strip = _root_of(files, paths)
        decoded = {unquote(name): name for name in files.known if "%" in name}  # as some download tools leave them
        names = [_name_in(files, decoded, prefix + (_inside(path) if strip else path)) for path in paths]
        found = rows.assign(file=[name or "" for name in names])
        lost = {str(row[_IMAGE]): row[_PATH] for row in found[found["file"] == ""].to_dict("records")}
        found = found[~found[_IMAGE].isin(list(lost))]
        if found.empty:
            raise DataError(
                f"'{location}' has none of the files of study '{study}', for example '{paths[0]}'; give the folder, "
                "zip or bucket in which they lie."
            )
        guiding = _guidance_of(files, guidance)
        reader = None if guiding is None else GuidanceReader(guiding, _guidance_prefix(guiding, found[_PATH]))
        super().__init__(files, found, study=study, cells=reader, channel_aliases=channel_aliases)
        self.problems.extend(bad)
        self.problems.extend((image, f"'{location}' has no file for '{path}'.") for image, path in lost.items())
        self._count(len(lost), strip and PurePosixPath(prefix).parts[:1] != PurePosixPath(paths[0]).parts[:1], reader)

    def _count(self, lost: int, other_root: bool, reader: GuidanceReader | None) -> None:
        if lost:
            self.remarks[NO_FILE] += lost
        if other_root:
            self.remarks[OTHER_ROOT] += self.count
        if reader is not None:
            guided = self._table[_PATH].map(reader.knows).groupby(self._table[_IMAGE]).any()
            if not guided.all():
                self.remarks[NO_GUIDANCE] += int((~guided).sum())

    @cached_property
    def _odd_sizes(self) -> list[str]:
        """What the metadata say wrongly of the image that is being read."""
        return []

    def load(self, image_id: str) -> ImageRecord:
        """Read one image with its rows and cells; see `TableSource.load`."""
        self._odd_sizes.clear()
        image = super().load(image_id)
        return replace(image, remarks=[*image.remarks, *dict.fromkeys(self._odd_sizes)])

    def _full_row(
        self, row: Mapping[str, str], n_channels: int, plane: NDArray[Any], remark: str | None
    ) -> dict[str, Any]:
        """Return a plane's row; where the metadata say another size than the pixels, the pixels are right."""
        told = dict(zip(_SIZES, (plane.shape[1], plane.shape[0], n_channels), strict=True))
        for column, value in told.items():
            if or_else(row.get(column), UNKNOWN) not in (UNKNOWN, str(value), f"{value}.0"):
                self._odd_sizes.append(f"{column} of the metadata is not that of the pixels")
        return super()._full_row({**row, **dict.fromkeys(_SIZES, "")}, n_channels, plane, remark)

    @classmethod
    def open(cls, location: str, **settings: Any) -> list[Self]:
        """Return one source for each study of the metadata.

        Args:
            location: As in the constructor.
            settings: As in the constructor, and `studies`: names with commas between, to read these alone.

        Raises:
            DataError: If one of the `studies` is not in the metadata, or as in the constructor.
        """
        chosen = [name.strip() for name in str(settings.pop("studies", "")).split(",") if name.strip()]
        if settings.get("study") is not None:
            return [cls(location, **settings)]
        files = _shared(location)
        beside, sheet = _metadata_of(files, settings.get("metadata"))
        studies = studies_of(beside, sheet)
        for name in chosen:
            if name not in studies:
                raise DataError(f"'{beside.describe(sheet)}' has no study '{name}'; it holds {', '.join(studies)}.")
        return [cls(location, **{**settings, "study": study}) for study in chosen or studies]

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether there is a `*metadata.csv` with `storage.path` beside PNGs, or beside a zip of them.

        Args:
            files: Of the location.
        """
        if not any(name.lower().endswith(".png") for name in files.names()):
            return False
        sheets = _sheets_near(files)
        if len(sheets) != 1:
            return False
        beside, sheet = sheets[0]
        columns = set(columns_of(beside, sheet))
        return {_IMAGE, _PATH, _TYPE} <= columns and not {"file", "storage.zip"} & columns

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write two images of two channels, 16 x 20 pixels, with cells, and return their source.

        Args:
            folder: Exists and is empty.
        """
        from PIL import Image
        from safetensors.numpy import save_file

        ramp = np.arange(16 * 20, dtype=np.uint16).reshape(16, 20)
        rows = []
        for image in range(2):
            for channel, kind in enumerate(("nucleus", "actin")):
                path = f"CHAMMI-75_train/tiny/image{image}-ch{channel}.png"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((ramp // 2 + 40 * channel + image).astype(np.uint8)).save(folder / path)
                guidance = folder / "CHAMMI-75_guidance" / guidance_name(path)
                guidance.parent.mkdir(parents=True, exist_ok=True)
                save_file({"data": np.array([[10, 8], [4, 5]]), "sizes": np.array([300, 12])}, guidance)
                rows.append(
                    {
                        "experiment.study": "tiny",
                        _IMAGE: f"image{image}",
                        "imaging.channel": str(channel + 1),
                        _TYPE: kind,
                        _PATH: path,
                    }
                )
        pd.DataFrame(rows).to_csv(folder / "CHAMMI-75_small_metadata.csv", index=False)
        return cls(str(folder))


_OPEN: WeakValueDictionary[str, Files] = WeakValueDictionary()


def _shared(location: str) -> Files:
    """Return the files of a location; the studies in it share one listing as long as one of them is in use."""
    files = _OPEN.get(location)
    if files is None:
        files = open_files(location)
        _OPEN[location] = files
    return files


def _metadata_of(files: Files, metadata: str | None) -> tuple[Files, str]:
    """Return where the CSV lies, and its name."""
    if metadata is not None:
        if "://" in metadata:
            folder, _, name = metadata.rpartition("/")
            return open_files(folder), name
        path = Path(metadata)
        if not path.is_file():
            raise DataError(f"There is no file '{metadata}'; give the CSV with the metadata of CHAMMI-75.")
        return FolderFiles(path.parent, only=path.name), path.name
    sheets = _sheets_near(files)
    if len(sheets) != 1:
        said = ", ".join(beside.describe(name) for beside, name in sheets) or "none"
        raise DataError(f"'{files.location}' needs one *{METADATA} ({said} found); say which with --set metadata=PATH.")
    return sheets[0]


def _sheets_near(files: Files) -> list[tuple[Files, str]]:
    inside = [(files, name) for name in files.names() if name.lower().endswith(METADATA)]
    archive = Path(files.location)
    if inside or "://" in files.location or not archive.is_file():
        return inside
    beside = sorted(path.name for path in archive.parent.iterdir() if path.name.lower().endswith(METADATA))
    return [(FolderFiles(archive.parent, only=name), name) for name in beside]


def _only_study(files: Files, sheet: str) -> str:
    studies = studies_of(files, sheet)
    if len(studies) != 1:
        raise DataError(
            f"'{files.describe(sheet)}' holds {len(studies)} studies ({', '.join(studies[:5])}, ...); say which with "
            "'study', or open all of them."
        )
    return studies[0]


def _inside(path: str) -> str:
    """A path without its first folder, which is the name of the set."""
    return path.partition("/")[2] or path


def _root_of(files: Files, paths: list[str]) -> tuple[str, bool]:
    """Return what stands before a study's paths in the location, and whether their own first folder is taken off.

    A few paths, spread over the study, are looked for under every folder; some of them may be missing.
    """
    few = [paths[i] for i in np.linspace(0, len(paths) - 1, min(len(paths), 20)).astype(int)]
    if any(path in files.known for path in few):
        return "", False
    names = [unquote(name) for name in files.known]
    for path in few:
        ending = "/" + _inside(path)
        for name in names:
            if ("/" + name).endswith(ending):
                return name[: len(name) - len(ending) + 1], True
    return "", True


def _name_in(files: Files, decoded: Mapping[str, str], name: str) -> str | None:
    return name if name in files.known else decoded.get(name)


def _guidance_of(files: Files, guidance: str | None) -> Files | None:
    if guidance is not None:
        return _shared(guidance)
    return files if any(name.endswith(".safetensors") for name in files.known) else None


def _guidance_prefix(files: Files, paths: "pd.Series[str]") -> str:
    """What stands before guidance files: the first folder of a file that fits one of the paths."""
    wanted = {guidance_name(path) for path in paths}
    for name in files.names():
        parts = name.split("/")
        for i in range(len(parts)):
            if "/".join(parts[i:]) in wanted:
                return "/".join([*parts[:i], ""]) if i else ""
    return ""
