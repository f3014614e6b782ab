"""The shapes of steps: few, because each is a program that takes seconds to compile."""

from engine.platform import ShapeBuckets, StepLimits

#: Each size is this many times the one before.
STEP = 4
SMALLEST_TOKENS = 16


def buckets(limits: StepLimits, step: int = STEP) -> ShapeBuckets:
    """Decode steps of so many requests, and steps of so many tokens; over contexts of so many
    blocks. Both kinds of rows may share a step of the second kind.

    `step`: how far apart numbers of requests and of blocks lie; the smallest context has 64 times
    as many tokens. Tokens lie no farther apart: steps are cut to their sizes.
    """
    return ShapeBuckets(
        tokens=growing(SMALLEST_TOKENS, limits.max_tokens),
        requests=(limits.max_requests,),
        decodes=growing(1, limits.max_requests, step),
        blocks=growing(-(-64 * step // limits.block_size), limits.max_blocks, step),
    )


def growing(smallest: int, most: int, step: int = STEP) -> tuple[int, ...]:
    """smallest, `step` times that and so on, and `most`."""
    if smallest >= most:
        return (most,)
    return (smallest, *growing(step * smallest, most, step))
