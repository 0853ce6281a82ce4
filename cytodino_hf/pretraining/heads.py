"""The projection head between a backbone's tokens and the prototypes on which student and teacher must agree."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Spread of the fresh weights of the hidden layers, as in DINO and iBOT.
_INITIAL_STD = 0.02


class Prototypes(nn.Module):
    """Cosine of each vector with each prototype: a linear layer without bias whose rows have norm 1.

    This is weight normalisation with its gain fixed to 1, so that no prototype wins by growing.

    Args:
        width: Width of the vectors.
        count: Prototypes.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        bound = width**-0.5  # what a linear layer starts from
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, unit_vectors: Tensor) -> Tensor:
        """Cosines: (rows, width) -> (rows, count)."""
        return F.linear(unit_vectors, F.normalize(self.weight, dim=-1))


class IBotHead(nn.Module):
    """Three layers with GELU, the unit sphere, then prototypes; works on any number of rows, none included.

    Args:
        width: Width of the backbone's tokens.
        hidden_dim: Width of the two hidden layers.
        bottleneck_dim: Width of the unit vectors.
        out_dim: Prototypes.

    Source:
        Zhou et al. 2022, iBOT (arXiv 2111.07832), section 4.1; Caron et al. 2021, DINO (arXiv 2104.14294), appendix C.
    """

    def __init__(self, width: int, hidden_dim: int, bottleneck_dim: int, out_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=_INITIAL_STD)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(bottleneck_dim, out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits in [-1, 1]: (rows, width) -> (rows, out_dim)."""
        # bfloat16 keeps 8 bits: too few for the sum of squares behind a norm.
        return self.last_layer(F.normalize(self.mlp(tokens).float(), dim=-1))
