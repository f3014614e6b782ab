"""Building blocks of a decoder, ready for tensor parallelism.

A layer is handed the weights of its own rank (`engine.models.weights` reads just those) and chooses
its operations when it is built. With one rank the communicator's calls are the identity.
"""

from engine.layers.embedding import Embedding, TiedEmbedding
from engine.layers.linear import ColumnParallelLinear, RowParallelLinear
from engine.layers.mixture import Mixture
from engine.layers.norm import RMSNorm
from engine.layers.rotary import Rotary
from engine.layers.site import Site

__all__ = [
    "ColumnParallelLinear",
    "Embedding",
    "Mixture",
    "RMSNorm",
    "Rotary",
    "RowParallelLinear",
    "Site",
    "TiedEmbedding",
]
