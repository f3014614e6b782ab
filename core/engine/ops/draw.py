"""Drawing a token from weights: the inverse of the cumulative distribution, in two levels.

    weights    |...... chunk 0 ......|...... chunk 1 ......|.. chunk 2 ..|
    level 1    chunk c with probability sum(c) / total, from the first number
    level 2    token t of it with probability weight(t) / sum(c), from the second

One running sum over 150,000 float32 weights loses the small ones: next to a sum near 1, a weight
under 6e-8 vanishes. Two levels of a few hundred weights each do not, and the two numbers together
resolve 2**-48. It is also cheaper: over the whole vocabulary there is a sum, not a running sum.
Noise for each token (Gumbel) would need a random number a token instead of two a request.

Shape legend: N rows, V vocabulary, C chunks, S tokens of a chunk.
"""

import torch
from torch import Tensor

#: Near the square root of today's vocabularies, so that both levels are short.
CHUNK = 512


def draw(weights_NV: Tensor, uniforms_N2: Tensor) -> Tensor:
    """One token a row: int64 [N].

    `weights_NV` float32, at least 0, need not sum to 1. `uniforms_N2` float32 in [0, 1). A token
    of weight 0 is never drawn; a row with a NaN in it gives some token of the vocabulary.
    """
    size = weights_NV.shape[1]
    chunk_N1 = _pick(chunk_sums(weights_NV), uniforms_N2[:, :1])
    ids_NS = chunk_N1 * CHUNK + torch.arange(CHUNK, device=weights_NV.device)
    inside_NS = weights_NV.gather(1, ids_NS.clamp(max=size - 1)).masked_fill(ids_NS >= size, 0.0)
    ids_N1 = chunk_N1 * CHUNK + _pick(inside_NS, uniforms_N2[:, 1:])
    return ids_N1.clamp(max=size - 1).squeeze(1)


def chunk_sums(weights_NV: Tensor) -> Tensor:
    """[N, C]: the sum of each chunk; the last one may be shorter."""
    rows, size = weights_NV.shape
    whole = size // CHUNK * CHUNK
    sums_NC = weights_NV[:, :whole].view(rows, whole // CHUNK, CHUNK).sum(-1)
    rest_N1 = weights_NV[:, whole:].sum(-1, keepdim=True)
    return torch.cat((sums_NC, rest_N1), dim=1)


def _pick(weights_NS: Tensor, uniform_N1: Tensor) -> Tensor:
    """Index [N, 1] of the first positive weight at which the running sum exceeds its share."""
    running_NS = weights_NS.cumsum(-1)
    # A sum taken in parallel may waver by its last bit, also where a weight of zero is added.
    beyond_NS = (running_NS > uniform_N1 * running_NS[:, -1:]) & (weights_NS > 0)
    first_N1 = beyond_NS.to(torch.uint8).argmax(-1, keepdim=True)
    # The share of a subnormal sum may be rounded up to all of it; then no sum is beyond.
    likeliest_N1 = weights_NS.argmax(-1, keepdim=True)
    return torch.where(beyond_NS.any(-1, keepdim=True), first_N1, likeliest_N1)
