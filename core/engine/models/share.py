"""Which part of a decoder's weights one rank has."""

from dataclasses import dataclass

from engine.errors import ModelError
from engine.models.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Share:
    """Half-open ranges of this rank, in the whole model's numbering."""

    heads: range
    kv_heads: range  # held by several ranks, where there are more ranks than heads
    feed_forward: range
    vocab: range  # everything, where the ranks do not divide it


def share(architecture: Architecture, rank: int, size: int) -> Share:
    """The part of rank `rank` of `size`.

    Raises:
        ModelError: the model cannot be divided by so many ranks.
    """
    heads, kv_heads = architecture.num_heads, architecture.num_kv_heads
    inner, vocab = architecture.feed_forward_width, architecture.vocab_size
    uneven = heads % size or inner % size or (kv_heads % size and size % kv_heads)
    if uneven:
        raise ModelError(
            f"{heads} heads, {kv_heads} key/value heads and a feed-forward width of {inner} cannot "
            f"be divided evenly over {size} devices; use a number that divides them"
        )
    first = rank * kv_heads // size
    return Share(
        heads=_part(heads, rank, size),
        kv_heads=range(first, first + max(1, kv_heads // size)),
        feed_forward=_part(inner, rank, size),
        vocab=range(vocab) if vocab % size else _part(vocab, rank, size),
    )


def _part(total: int, rank: int, size: int) -> range:
    return range(rank * total // size, (rank + 1) * total // size)
