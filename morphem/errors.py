"""The errors that morphem raises for what a user can cause, all with one base.

A message names the thing, the place, what is allowed and the remedy, in one sentence. The command line prints the
message alone, without a traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class MorphemError(Exception):
    """Something that a user can put right; the base of all errors raised on purpose."""


class ConfigError(MorphemError, ValueError):
    """A setting is unknown, of the wrong type, without effect, or at odds with another."""


class PluginError(MorphemError, ValueError):
    """A plug-in is unknown, broken, or registered twice."""


class DataError(MorphemError, ValueError):
    """A file, a shard, a table or an image is not what it should be."""


class ChannelError(MorphemError, ValueError):
    """A channel is unknown, repeated, missing, or addressed in a way that could be mistaken."""


class WeightsError(MorphemError, ValueError):
    """A checkpoint does not fit, is damaged, or holds more than weights."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of the known names that resemble `name`, best first, without regard to case.

    Args:
        name: What somebody typed.
        known: The names that would have been right.
        count: How many to return at most.
    """
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = get_close_matches(name.casefold(), by_folded, n=count, cutoff=0.5)
    return [by_folded[folded] for folded in close]


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence for a name that does not exist, with the nearest known name or all known names.

    Args:
        what: The kind of thing, for example `channel type`.
        name: What somebody typed.
        known: The names that would have been right.
    """
    known = sorted(known)
    close = nearest(name, known, count=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    shown = ", ".join(known[:30]) + (f" and {len(known) - 30} more" if len(known) > 30 else "")
    return f"No {what} '{name}'; {hint}known: {shown or 'none'}."
