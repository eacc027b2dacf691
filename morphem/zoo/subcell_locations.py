"""SubCell's heads: probabilities of 31 subcellular locations from an embedding.

Source: CellProfiling/SubCellPortable at 676f0e1 (names of the classes: `inference.py` at a66715a); Human Protein Atlas.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from morphem import weights
from morphem.errors import DataError, WeightsError
from morphem.features import FeatureTable, short_name
from morphem.zoo.strictness import load_renamed, without_memory

LOCATIONS = (
    "Actin filaments",
    "Aggresome",
    "Cell Junctions",
    "Centriolar satellite",
    "Centrosome",
    "Cytokinetic bridge",
    "Cytoplasmic bodies",
    "Cytosol",
    "Endoplasmic reticulum",
    "Endosomes",
    "Focal adhesion sites",
    "Golgi apparatus",
    "Intermediate filaments",
    "Lipid droplets",
    "Lysosomes",
    "Microtubules",
    "Midbody",
    "Mitochondria",
    "Mitotic chromosome",
    "Mitotic spindle",
    "Nuclear bodies",
    "Nuclear membrane",
    "Nuclear speckles",
    "Nucleoli",
    "Nucleoli fibrillar center",
    "Nucleoli rim",
    "Nucleoplasm",
    "Peroxisomes",
    "Plasma membrane",
    "Vesicles",
    "Negative",
)
"""What the 31 outputs stand for."""

_PREFIX = "Cells_SubCell_Location"


class SubCellClassifier(nn.Module):
    """Multi-layer perceptrons on the embedding, whose probabilities are averaged.

    Args:
        widths: Of the embedding, the hidden layers and the classes; released: 1536, 512, 256, 31.
        n_heads: Perceptrons.
    """

    def __init__(self, widths: Sequence[int] = (1536, 512, 256, len(LOCATIONS)), n_heads: int = 1) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.heads = nn.ModuleList(_perceptron(widths) for _ in range(n_heads))

    def forward(self, features: Tensor) -> Tensor:
        """Return the probability of each class, (N, D) to (N, K), each in [0, 1]; they do not sum to 1."""
        return torch.stack([head(features).sigmoid() for head in self.heads]).mean(0)

    def table(self, features: FeatureTable) -> FeatureTable:
        """Return the probabilities of locations for the rows of a table of SubCell's features.

        Args:
            features: What the encoder gave, one row per image or cell.

        Raises:
            DataError: If the table has another number of features, or the head another number of classes.
        """
        if features.values.shape[1] != self.widths[0] or self.widths[-1] != len(LOCATIONS):
            raise DataError(
                f"the head takes {self.widths[0]} features and gives {self.widths[-1]} classes, but the table has "
                f"{features.values.shape[1]} features, and {len(LOCATIONS)} locations have names; "
                "give the table of the SubCell encoder that the head was made for."
            )
        with torch.no_grad():
            values = self(torch.from_numpy(features.values)).numpy()
        columns = tuple(f"{_PREFIX}_{short_name(name)}" for name in LOCATIONS)
        dictionary = tuple(
            {"column": column, "channel": "image", "index": i, "kind": "image"} for i, column in enumerate(columns)
        )
        provenance = {**features.provenance, "classifier_fingerprint": weights.fingerprint(self.state_dict())}
        return FeatureTable(values.astype(np.float32), features.metadata, columns, dictionary, provenance)

    @classmethod
    def from_files(cls, *files: Path) -> Self:
        """Read released heads; a head of the training repository, with dropouts between its layers, will do too.

        Args:
            files: One head each.

        Raises:
            WeightsError: If there is none, or a file is not such a head.
        """
        heads = [_read(file) for file in files]
        shapes = {tuple(layer.shape[::-1] for layer in head[::2]) for head in heads}
        if len(shapes) != 1:
            raise WeightsError(
                f"{len(files)} files of heads with {len(shapes)} kinds of layers; give at least one, all of one model."
            )
        sizes = shapes.pop()
        with without_memory():
            classifier = cls((sizes[0][0], *(size[1] for size in sizes)), len(heads))
        state = {
            f"heads.{i}.{2 * layer}.{kind}": head[2 * layer + offset]
            for i, head in enumerate(heads)
            for layer in range(len(head) // 2)
            for offset, kind in enumerate(("weight", "bias"))
        }
        load_renamed(classifier, state, dict, dict, ", ".join(map(str, files)))
        return classifier.eval()


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _read(file: Path) -> list[Tensor]:
    """Return weight and bias of each layer of a head, in order, whatever stands between the layers."""
    tensors = weights.read_tensors(file)
    numbers = sorted({int(name.split(".")[0]) for name in tensors if re.fullmatch(r"\d+\.(weight|bias)", name)})
    names = [f"{number}.{kind}" for number in numbers for kind in ("weight", "bias")]
    if not names or set(names) != set(tensors):
        raise WeightsError(f"{file} is no head of SubCell: its keys are {', '.join(tensors) or 'none'}.")
    return [tensors[name] for name in names]
