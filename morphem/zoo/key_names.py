"""Names of tensors in the authors' files and in ours: one table that is read in both directions."""

import re
from collections.abc import Iterable, Mapping
from string import Formatter

from torch import Tensor

from morphem.errors import WeightsError

_SHOWN = 5
_NUMBER, _REST = r"\d+", r".+"


class KeyNames:
    """Pairs of templates such as `("layer.{i}.before.{rest}", "blocks.{i}.norm1.{rest}")`.

    Args:
        pairs: The authors' template and ours. Fields of one letter stand for a number, longer ones for any text; both
            templates of a pair have the same fields.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        pairs = list(pairs)
        self._inwards = [(_pattern(theirs), ours) for theirs, ours in pairs]
        self._outwards = [(_pattern(ours), theirs) for theirs, ours in pairs]

    def inwards(self, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """Give tensors our names.

        Args:
            tensors: By the authors' names.
            source: Where they come from, for the message.

        Raises:
            WeightsError: If a name is in no template; all are listed.
        """
        return _renamed(tensors, self._inwards, source)

    def outwards(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give tensors the authors' names.

        Args:
            tensors: By our names.

        Raises:
            WeightsError: If a name is in no template; all are listed.
        """
        return _renamed(tensors, self._outwards, "the encoder")


def _renamed(tensors: Mapping[str, Tensor], rules: list[tuple[re.Pattern[str], str]], source: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    strange = []
    for name, tensor in tensors.items():
        matches = ((pattern.fullmatch(name), template) for pattern, template in rules)
        fit = next((template.format(**match.groupdict()) for match, template in matches if match), None)
        if fit is None:
            strange.append(name)
        else:
            found[fit] = tensor
    if strange:
        more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
        raise WeightsError(
            f"{source} does not fit this architecture: {len(strange)} unexpected "
            f"({', '.join(strange[:_SHOWN])}{more}); load it with the family that it is of."
        )
    return found


def _pattern(template: str) -> re.Pattern[str]:
    parts = []
    for text, field, _, _ in Formatter().parse(template):
        parts.append(re.escape(text))
        if field is not None:
            parts.append(f"(?P<{field}>{_NUMBER if len(field) == 1 else _REST})")
    return re.compile("".join(parts))
