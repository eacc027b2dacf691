"""The channel types that a strategy has learned, and what becomes of others."""

from collections.abc import Collection, Mapping, Sequence

from morphem.data.schema import resolve_channel
from morphem.errors import ChannelError, nearest, unknown_name

UNKNOWN_POLICIES = ("error", "zero", "mean", "nearest")


class Vocabulary:
    """Channel types in a fixed order.

    Args:
        names: Channel types by name or alias.
        aliases: Further channel types, each with the one of `names` that stands for it.
        unknown: One of `UNKNOWN_POLICIES`.
        own_names: What the weights' authors call the channels, each with the one of `names` or `aliases` that it stands
            for. One that stands for itself here needs no channel type: it is known to these weights alone.

    Attributes:
        names: Channel types by name.

    Raises:
        ChannelError: If there is no name, one is unknown or repeated, or an alias or a name of the authors stands for
            a type that is not there.
    """

    def __init__(
        self, names: Sequence[str], aliases: Mapping[str, str], unknown: str, own_names: Mapping[str, str] | None = None
    ) -> None:
        self._own = own_names or {}
        alone = {name for name, target in self._own.items() if name == target}
        self.names = resolve_distinct(names, "vocabulary", alone)
        self.unknown = unknown
        self._numbers = {name: number for number, name in enumerate(self.names)}
        for alias, target in aliases.items():
            name, known = (part if part in alone else resolve_channel(part) for part in (alias, target))
            if name in self.names:
                raise ChannelError(f"aliases: '{alias}' is in the vocabulary itself; leave one of the two out.")
            if known not in self.names:
                raise ChannelError(f"aliases: '{alias}' stands for '{target}', but {self._not_there(known)}")
            self._numbers[name] = self._numbers[known]
        for name, target in self._own.items():
            if target not in self._numbers:
                raise ChannelError(f"own_names: '{name}' stands for '{target}', but {self._not_there(target)}")

    def resolve(self, name: str | int) -> str:
        """Return the channel type that a user means.

        Args:
            name: A name of the authors in their spelling, a channel type or an alias of one, or a number: the place in
                the vocabulary, from 0.

        Raises:
            ChannelError: If it is none of them.
        """
        if isinstance(name, int) or name.isdecimal():
            if not 0 <= int(name) < len(self.names):
                raise ChannelError(
                    f"there is no channel {name}: this encoder numbers them 0 to {len(self.names) - 1} "
                    f"({', '.join(self.names)})."
                )
            return self.names[int(name)]
        if name in self._own:
            return self._own[name]
        try:
            return resolve_channel(name)
        except ChannelError as fault:
            if not self._own:
                raise
            raise ChannelError(f"{unknown_name('channel of this encoder', name, self._own)} {fault}") from fault

    def number(self, name: str, *, strict: bool) -> int:
        """Return the number of a channel type; behind the last, one that has no embedding or the mean of all.

        Args:
            name: A channel type.
            strict: Whether to refuse what is not in the vocabulary, whatever the policy.

        Raises:
            ChannelError: If it is refused, or no name is near.
        """
        number = self._numbers.get(name)
        if number is not None:
            return number
        if strict:
            raise ChannelError(self._not_there(name))
        if self.unknown == "error":
            raise ChannelError(f"{self._not_there(name)[:-1]}, or set unknown to zero, mean or nearest.")
        if self.unknown == "nearest":
            close = nearest(name, self.names, count=1)
            if not close:
                raise ChannelError(f"no name is near, and {self._not_there(name)}")
            return self._numbers[close[0]]
        return len(self.names) + ("zero", "mean").index(self.unknown)

    def _not_there(self, name: str) -> str:
        return (
            f"channel type '{name}' is not in the vocabulary of this encoder ({', '.join(self.names)}); add it there, "
            "give it an alias, or leave the channel out."
        )


def resolve_name(name: str | int) -> str:
    """Return the channel type that a user means, where the encoder numbers no channels.

    Args:
        name: A channel type or an alias of one.

    Raises:
        ChannelError: If it is neither.
    """
    if isinstance(name, int) or name.isdecimal():
        raise ChannelError(f"channel {name} is a number, and this encoder numbers no channels; give names.")
    return resolve_channel(name)


def resolve_distinct(names: Sequence[str], what: str, alone: Collection[str] = ()) -> tuple[str, ...]:
    """Return channel types by name, and refuse an empty list, unknown names and repetitions.

    Args:
        names: Channel types by name or alias.
        what: What the list is, for messages.
        alone: Names that are taken as they stand.

    Raises:
        ChannelError: If there is none, or one is unknown or repeated.
    """
    resolved = tuple(name if name in alone else resolve_channel(name) for name in names)
    if not resolved:
        raise ChannelError(f"{what} is empty; name at least one channel type.")
    repeated = sorted({name for name in resolved if resolved.count(name) > 1})
    if repeated:
        raise ChannelError(f"{what} names '{repeated[0]}' twice; name every channel type once.")
    return resolved
