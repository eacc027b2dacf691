"""Projection heads: from embeddings to the space in which a loss compares them.

Source: `DINOHead` of facebookresearch/dino at 7c446df and `DINOProjectionHead` of lightly 1.6, on whose layers this
one is built. Differs from both: weight normalisation is a parametrization, so that the head can be deep-copied;
checkpoints with `last_layer.weight_g` and `last_layer.weight_v` load all the same.
"""

from typing import Self

from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrizations import weight_norm

from morphem.spec import Configurable


class DINOHead(ProjectionHead, Configurable):  # type: ignore[misc]  # lightly is not typed
    """Three linear layers, L2 normalisation, and a linear layer of unit rows: cosine similarities to K prototypes.

    Args:
        input_dim: D of the embeddings.
        n_prototypes: K, 65,536 in the published recipe.
        hidden_dim: Width of the two hidden layers.
        bottleneck_dim: Width of the normalised layer.
        norm_last_layer: Whether the prototypes keep length 1; otherwise their lengths are trained, which Caron et al.
            found to help in some settings and to be less stable.
        batch_norm: Whether the two hidden layers are normalised over the batch (`use_bn_in_head` of the DINO
            repository, its choice for convolutional networks).
    """

    def __init__(
        self,
        input_dim: int,
        n_prototypes: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        norm_last_layer: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(
            [
                (input_dim, hidden_dim, nn.BatchNorm1d(hidden_dim) if batch_norm else None, nn.GELU()),
                (hidden_dim, hidden_dim, nn.BatchNorm1d(hidden_dim) if batch_norm else None, nn.GELU()),
                (hidden_dim, bottleneck_dim, None, None),
            ]
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:  # a batch normalisation has its own
                    nn.init.zeros_(layer.bias)
        self.last_layer = weight_norm(nn.Linear(bottleneck_dim, n_prototypes, bias=False))
        length = self.last_layer.parametrizations.weight.original0  # (K, 1)
        nn.init.ones_(length)
        length.requires_grad_(not norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        """Score embeddings, (M, D), against the prototypes, (M, K)."""
        scores: Tensor = self.last_layer(normalize(self.layers(x), dim=-1, eps=1e-12))
        return scores

    @classmethod
    def tiny(cls) -> Self:
        """The smallest head that works, for embeddings of width 8."""
        return cls(8, n_prototypes=16, hidden_dim=16, bottleneck_dim=8)
