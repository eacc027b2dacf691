"""Data sources: studies of images that `morphem ingest` reads."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from morphem.sources.base import Source


def find_source(location: str) -> "type[Source]":
    """Return the registered source whose layout a location has.

    Args:
        location: A folder, a file, a zip, or an address of an object store.

    Raises:
        DataError: If there is nothing, no source knows the layout, or several of one priority do.
        PluginError: If a registered source cannot be imported.
    """
    from morphem import registry
    from morphem.errors import DataError
    from morphem.readers.files import open_files

    files = open_files(location)
    known: dict[str, type[Source]] = {plugin.name: plugin.load() for plugin in registry.plugins("sources")}
    fits = {name: cls for name, cls in known.items() if cls.recognises(files)}
    if not fits:
        raise DataError(
            f"'{location}' has the layout of no known source ({', '.join(known)}); write a metadata.csv, or say how to "
            "read it with --source."
        )
    highest = max(cls.priority for cls in fits.values())
    best = [name for name, cls in fits.items() if cls.priority == highest]
    if len(best) > 1:
        raise DataError(f"'{location}' can be read by {' and by '.join(best)}; say which with --source.")
    return fits[best[0]]
