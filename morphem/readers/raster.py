"""PNG, JPEG and BMP files."""

from typing import Any, BinaryIO

import numpy as np

from morphem.errors import DataError
from morphem.readers.planes import Array, FileHeader, Place, Stack, check_pixels, check_ramp

_MAGIC = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP"}
_PNG_DEPTH, _PNG_COLOUR = 24, 25  # where the first chunk of a PNG states bits per sample and kind of colour
_DTYPES = {"I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}


def raster_kind(start: bytes) -> str:
    """Return the kind of file that begins with these bytes, or an empty text.

    Args:
        start: The first bytes of a file, 4 or more.
    """
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


class RasterImage:
    """A PNG, JPEG or BMP that is open for reading.

    Args:
        file: Open at its start; closed by `close`.
        where: How to call it.
        max_pixels: Largest number of pixels.
        kind: As `raster_kind` says.

    Raises:
        DataError: If it is too large.
    """

    def __init__(self, file: BinaryIO, where: str, max_pixels: int, kind: str) -> None:
        self._file = file
        self._where = where
        self._decoded: Stack | None = None
        try:
            start = file.read(32)
            # 16-bit colour PNGs lose 8 bits in Pillow
            self._deep = (
                kind == "PNG" and len(start) > _PNG_COLOUR and start[_PNG_DEPTH] == 16 and start[_PNG_COLOUR] > 0
            )
            file.seek(0)
            self._image = _pillow_class(kind)(file)
            check_pixels(self._image.width * self._image.height, max_pixels, where)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._image.close()
        self._file.close()

    def header(self) -> FileHeader:
        """Tell what the file says of itself."""
        bands = len(self._image.getbands())
        shape = (self._image.height, self._image.width, *([bands] if bands > 1 else []))
        dtype = "uint16" if self._deep else _DTYPES.get(self._image.mode, "uint8")
        return FileHeader("YXS"[: len(shape)], shape, dtype, 1, 1, (), None)

    def stack(self, place: Place) -> Stack:
        """Decode the picture; once, however many planes are asked for."""
        if place.axis == "page" and place.number:
            raise DataError(f"'{self._where}' has 1 page; plane_index {place.number} is not among them.")
        if self._decoded is None:
            pixels = self._pixels()
            self._decoded = Stack(pixels, "YXS" if pixels.ndim == 3 else "YX")
        return self._decoded

    def _pixels(self) -> Array:
        if self._deep:
            import imagecodecs

            self._file.seek(0)
            return np.asarray(imagecodecs.png_decode(self._file.read()))
        if self._image.mode == "P":
            palette = np.asarray(self._image.getpalette("RGB")).reshape(-1, 3).T
            pixels = np.array(self._image)
            check_ramp(palette, int(pixels.max()), self._where)
            return pixels
        return np.array(self._image.convert("L") if self._image.mode == "1" else self._image)


def _pillow_class(kind: str) -> Any:
    """Return the reader of one kind of file; the general door of Pillow has a limit on pixels of its own."""
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin

    return {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
    }[kind]
