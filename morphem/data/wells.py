"""One spelling of the wells of a plate: `A01`, as most plate maps write it."""

import re

_NAMED = re.compile(r"([A-Za-z]{1,2})[\s_\-]*0*(\d{1,2})")
_NUMBERED = re.compile(r"[Rr]0*(\d{1,2})[\s_\-]*[Cc]0*(\d{1,2})|(\d\d)(\d\d)")
_ROWS, _COLUMNS = 32, 48  # of the largest plates, 1536 wells


def normalise_well(text: str) -> str:
    """Return a well as row letters and column of two digits or more; what is no well stays as it is.

    Understood are letters and digits with anything like a dash between (`a1`, `A-1`, `A001`, `AA12`), rows and columns
    by number (`R02C03`, `r2c3`), and four digits (`0203`: row 2, column 3). Plates have up to 32 rows and 48 columns.

    Args:
        text: As the source gives it.
    """
    return _parsed(text.strip()) or text


def is_well(text: str) -> bool:
    """Whether a text is a well in one of the spellings that `normalise_well` understands.

    Args:
        text: As the source gives it.
    """
    return _parsed(text.strip()) is not None


def row_name(number: int) -> str:
    """Return the letters of a row: A for 1, Z for 26, AA for 27.

    Args:
        number: Row, from 1 to 32.
    """
    return chr(64 + number) if number <= 26 else "A" + chr(64 + number - 26)


def well_name(row: int, column: int) -> str:
    """Return the name of a well, for example `B03`.

    Args:
        row: From 1 to 32.
        column: From 1 to 48.
    """
    return f"{row_name(row)}{column:02d}"


def _parsed(text: str) -> str | None:
    if found := _NAMED.fullmatch(text):
        letters, column = found[1].upper(), int(found[2])
        row = ord(letters) - 64 if len(letters) == 1 else 26 + ord(letters[1]) - 64 if letters[0] == "A" else 0
    elif found := _NUMBERED.fullmatch(text):
        row, column = int(found[1] or found[3]), int(found[2] or found[4])
    else:
        return None
    return well_name(row, column) if 1 <= row <= _ROWS and 1 <= column <= _COLUMNS else None
