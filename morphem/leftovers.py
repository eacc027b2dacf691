"""Pickled files with more than weights in them: which strangers are tolerated, and what stands in their place.

Training checkpoints carry settings, metrics and states along: a namespace of arguments, an OmegaConf tree, numpy
scalars, remains of Lightning. None of it is needed, and building it would run code of whoever wrote the class. torch's
own weights-only reader does the reading; for the names below it is given a stand-in that does nothing and keeps
nothing but attributes. The class that a file names is never imported, whether or not it is installed. Names outside
the list are refused, and named; a user may add one (`inert=`), which gets the same stand-in.
"""

from collections import OrderedDict
from collections.abc import Collection
from typing import Any

_BUILTIN_TYPES = (
    *("bool", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range"),
    *("set", "slice", "str", "tuple", "type"),
)
_PREFIXES = (
    "numpy.",  # scalars and arrays of metrics, states of random generators
    "omegaconf.",
    "hydra.",
    "yacs.config.",
    "easydict.",
    "addict.",
    "munch.",
    "ml_collections.",
    "lightning.",
    "lightning_fabric.",
    "lightning_utilities.",
    "pytorch_lightning.",
    "torchmetrics.",
    "torch.optim.",
    "torch.nn.modules.",  # a layer class among saved arguments, for example in functools.partial(LayerNorm, eps=1e-6)
    "torch.cuda.amp.",
    "torch.amp.",
)
_NAMES = frozenset(
    {
        "argparse.Namespace",
        "collections.defaultdict",
        "collections.deque",
        "copyreg._reconstructor",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "functools.partial",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "types.SimpleNamespace",
        "typing.Any",
        "uuid.UUID",
        *(f"builtins.{name}" for name in _BUILTIN_TYPES),
        *(f"__builtin__.{name}" for name in _BUILTIN_TYPES),
    }
)
_MAPPINGS = ("defaultdict", "AttributeDict", "CfgNode", "EasyDict", "addict.Dict", "Munch", "ConfigDict")


class Leftover:
    """What stands in the place of an object that is not needed; only its attributes are kept, as `state`."""

    state: Any = None

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Take any arguments, and do nothing."""

    def __setstate__(self, state: object) -> None:
        """Keep what the file says of the object."""
        self.state = state
        if isinstance(state, dict):
            self.__dict__.update({str(key): value for key, value in state.items() if str(key) not in vars(Leftover)})


class LeftoverMapping:
    """Stands in the place of a kind of dictionary: building it gives a plain one, which torch's reader may fill."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        """Return an empty dictionary."""
        return OrderedDict()


def tolerated(name: str, inert: Collection[str] = ()) -> bool:
    """Whether a class or function that a file names may be left out of it.

    Args:
        name: Dotted name.
        inert: Further names that the user lets through.
    """
    return name in _NAMES or name in inert or name.startswith(_PREFIXES)


def stand_in(name: str, is_mapping: bool = False) -> tuple[type, str]:
    """Return a class of its own that does nothing, with the name that it stands for, as `safe_globals` takes it.

    Args:
        name: Dotted name, as the file has it.
        is_mapping: Whether it is a kind of dictionary, where its name does not tell.
    """
    base = LeftoverMapping if is_mapping or name.endswith(_MAPPINGS) else Leftover
    return type(base.__name__, (base,), {"__module__": __name__, "__doc__": f"Stands for {name}."}), name
