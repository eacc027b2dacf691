"""What every plug-in must keep, ours or a stranger's: shapes, purity, determinism, save and load, resume, learning.

Each check builds the plug-in's smallest instance (`tiny()`), runs it on a few synthetic images, and raises a
`ContractError` that names the class, what it broke and why that matters. A third-party package needs one test:

    from morphem.testing import check_plugin

    def test_vicreg_keeps_the_contracts():
        check_plugin("methods", "vicreg")
"""

from morphem.testing.batches import dense_batch, tiny_batch
from morphem.testing.benchmarks import check_benchmark
from morphem.testing.contract import ContractError
from morphem.testing.encoders import check_encoder
from morphem.testing.files import check_file
from morphem.testing.gain import check_gain
from morphem.testing.methods import check_method
from morphem.testing.pairs import check_pair
from morphem.testing.parts import check_backbone, check_strategy
from morphem.testing.plugins import check_plugin
from morphem.testing.sources import check_source
from morphem.testing.training import TinyData, train
from morphem.testing.zoo import check_pretrained

__all__ = [
    "ContractError",
    "TinyData",
    "check_backbone",
    "check_benchmark",
    "check_encoder",
    "check_file",
    "check_gain",
    "check_method",
    "check_pair",
    "check_plugin",
    "check_pretrained",
    "check_source",
    "check_strategy",
    "dense_batch",
    "tiny_batch",
    "train",
]
