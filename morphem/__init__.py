"""morphem: a model zoo for pictures of cells.

Importing it is fast and loads no torch; what it offers is imported when it is first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphem.embed import extract
    from morphem.encoder import Encoder
    from morphem.features import FeatureTable
    from morphem.registry import list_plugins
    from morphem.types import ChannelBatch
    from morphem.zoo import list_models, load

__version__ = version("morphem")

_WHERE = {
    "ChannelBatch": "morphem.types",
    "Encoder": "morphem.encoder",
    "FeatureTable": "morphem.features",
    "extract": "morphem.embed",
    "list_models": "morphem.zoo",
    "list_plugins": "morphem.registry",
    "load": "morphem.zoo",
}

__all__ = ["ChannelBatch", "Encoder", "FeatureTable", "extract", "list_models", "list_plugins", "load"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'morphem' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
