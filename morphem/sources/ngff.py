"""Stores of OME-Zarr and what their metadata say: images, plates, axes and pixel sizes, by zarr and ome-zarr.

Source: https://ngff.openmicroscopy.org/0.5/ and https://ngff.openmicroscopy.org/0.4/.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from morphem.data.wells import normalise_well
from morphem.errors import ConfigError, DataError
from morphem.sources.panels import image_name, study_name

STORE_NAME = re.compile(r"(?i)(\.zarr|\.zarr\.zip|\.ozx)$")
_IN_UM = {
    "angstrom": 1e-4,
    "picometer": 1e-6,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
_OPEN_STORES = 8


class Found(NamedTuple):
    """One image of a store.

    Attributes:
        group: Its multiscale group.
        path: Of the group inside the store; empty for the root.
        name: Of the image, unique in the location.
        facts: Columns of the schema and labels.
    """

    group: Any
    path: str
    name: str
    facts: dict[str, str]


def stores(location: str) -> list[str]:
    """Return the OME-Zarr stores of a location: an empty name where it is one itself, else their names.

    Args:
        location: A path or address.

    Raises:
        DataError: If there is none.
    """
    folder = Path(location)
    if "://" in location or folder.is_file():
        return [""]
    if not folder.is_dir():
        raise DataError(f"There is no folder '{location}'; give an OME-Zarr or a folder of some.")
    if STORE_NAME.search(folder.resolve().name) or any((folder / name).exists() for name in ("zarr.json", ".zgroup")):
        return [""]
    found = sorted(path.name for path in folder.iterdir() if STORE_NAME.search(path.name))
    if not found:
        raise DataError(f"'{location}' has no name that ends in .zarr, .zarr.zip or .ozx; give an OME-Zarr.")
    return found


@lru_cache(maxsize=_OPEN_STORES)
def open_store(location: str, store: str) -> Any:
    """Return the root group of a store; kept open.

    Args:
        location: A path or address.
        store: One of `stores(location)`.

    Raises:
        ConfigError: If the extra is not installed.
        DataError: If it cannot be opened.
    """
    zarr = zarr_package()
    try:
        if "://" in location:
            anonymous = {"anon": True} if location.startswith("s3") else {}
            return zarr.open_group(location, mode="r", storage_options=anonymous or None)
        path = Path(location) / store if store else Path(location)
        if path.is_dir():
            return zarr.open_group(str(path), mode="r")
        return _open_zip(zarr, path)
    except Exception as fault:  # each store has errors of its own
        raise DataError(
            f"'{called(location, store)}' cannot be opened as Zarr: {type(fault).__name__}: {first_line(fault)}."
        ) from fault


def _open_zip(zarr: Any, path: Path) -> Any:
    """Open a zip whose root, or whose only folder, is a group."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    inside = next(iter(tops)) if len(tops) == 1 else ""
    return zarr.open_group(zarr.storage.ZipStore(path, mode="r"), path=inside, mode="r")


def zarr_package() -> Any:
    """Import zarr, and see that ome-zarr is there.

    Raises:
        ConfigError: If the extra is not installed.
    """
    try:
        import ome_zarr.format  # noqa: F401
        import zarr
        import zarr.storage
    except ImportError as fault:
        raise ConfigError(
            f'OME-Zarr needs a package that is missing ({fault}); pip install "morphem[zarr]".'
        ) from fault
    return zarr


def attributes_of(group: Any) -> dict[str, Any]:
    """The NGFF metadata of a group: under `ome` since 0.5, at the top before."""
    top = dict(group.attrs)
    inner = top.get("ome")
    return {**top, **inner} if isinstance(inner, dict) else top


def images_of(location: str, store: str, problems: list[tuple[str, str]]) -> Iterator[Found]:
    """The images of a store; parts of a plate that are missing are added to the problems."""
    name = study_name(store or location)
    try:
        root = open_store(location, store)
        attributes = attributes_of(root)
    except DataError as fault:
        problems.append((name, str(fault)))
        return
    if "plate" in attributes:
        yield from _fields(root, attributes["plate"], name, called(location, store), problems)
    elif "multiscales" in attributes:
        yield Found(root, "", name, {})
    elif "bioformats2raw.layout" in attributes:
        series = attributes_of(root["OME"]).get("series") if "OME" in root else None
        for number in series or sorted((key for key in root.group_keys() if key.isdecimal()), key=int):
            yield Found(root[number], number, f"{name}-i{number}", {})
    else:
        problems.append((name, f"'{called(location, store)}' is Zarr but has neither multiscales nor a plate."))


def _fields(
    root: Any, plate: Mapping[str, Any], name: str, where: str, problems: list[tuple[str, str]]
) -> Iterator[Found]:
    """The fields of all wells of a plate."""
    acquisitions = {entry.get("id"): str(entry.get("name", entry.get("id"))) for entry in plate.get("acquisitions", [])}
    for entry in plate["wells"]:
        path = entry["path"]
        if "rowIndex" in entry and "columnIndex" in entry:
            row, column = plate["rows"][entry["rowIndex"]]["name"], plate["columns"][entry["columnIndex"]]["name"]
        else:
            row, _, column = path.partition("/")
        well = normalise_well(f"{row}{column}")
        try:
            fields = attributes_of(root[path])["well"]["images"]
        except (KeyError, ValueError) as fault:
            problems.append((f"{name}-{well}", f"'{where}' has no well '{path}' that can be read: {fault!r}."))
            continue
        for field in fields:
            inside = f"{path}/{field['path']}"
            facts = {
                "experiment.plate": str(plate.get("name") or name),
                "experiment.well": well,
                "microscopy.fov": str(field["path"]),
                "acquisition": acquisitions.get(field.get("acquisition"), str(field.get("acquisition", ""))),
            }
            title = image_name(("", name), ("", well), ("s", str(field["path"])))
            try:
                group = root[inside]
            except (KeyError, ValueError) as fault:
                problems.append((title, f"'{where}' has no field '{inside}' that can be read: {fault!r}."))
                continue
            yield Found(group, inside, title, facts)


def multiscale(attributes: Mapping[str, Any]) -> tuple[str, float | None, str]:
    """Letters of the axes, width of a pixel in micrometres, and path of the array of full resolution."""
    from ome_zarr.axes import Axes
    from ome_zarr.format import FormatV04, detect_format, format_from_version

    if not attributes.get("multiscales"):
        raise DataError("it has no multiscales; write it again.")
    first = attributes["multiscales"][0]
    version = str(attributes.get("version", first.get("version", "")))
    try:
        form = format_from_version(version) if version else detect_format(dict(attributes), FormatV04())
        axes = Axes(first.get("axes"), fmt=form).axes
        path = str(first["datasets"][0]["path"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as fault:
        raise DataError(f"its multiscales are not valid: {first_line(fault)}; write it again.") from fault
    letters = "".join(str(axis["name"]).casefold()[:1] for axis in axes)
    if letters[-2:] != "yx" or set(letters) - set("tczyx") or len(set(letters)) < len(letters):
        raise DataError(f"its axes are {', '.join(str(axis['name']) for axis in axes)}; allowed: t, c, z, y, x.")
    factor: float | None = _IN_UM.get(str(axes[-1].get("unit", "")))
    steps = [*first["datasets"][0].get("coordinateTransformations", []), *first.get("coordinateTransformations", [])]
    for step in steps:
        if factor is not None and step.get("type") == "scale":
            factor *= float(step["scale"][-1])
    return letters, factor, path


def called(location: str, *inside: str) -> str:
    """Return how to call something in a message.

    Args:
        location: A path or address.
        inside: Names from there inwards; empty ones are left out.
    """
    return "/".join([location.rstrip("/"), *(part for part in inside if part)])


def first_line(fault: Exception) -> str:
    """Return the first line of an exception's message, or an empty text.

    Args:
        fault: Of any library.
    """
    return str(fault).splitlines()[0] if str(fault) else ""
