"""The shapes of steps: few, because each is a program that takes seconds to compile."""

from engine.platform import ShapeBuckets, StepLimits

#: Each size is this many times the one before.
STEP = 4
SMALLEST_TOKENS = 16
#: Tokens of the smallest context, in whole blocks.
SMALLEST_CONTEXT = 256


class Buckets(ShapeBuckets):
    """Decode steps of so many requests, and steps of so many tokens; over contexts of so many
    blocks. Both kinds of rows may share a step of the second kind."""

    @classmethod
    def of(cls, limits: StepLimits) -> "Buckets":
        context = -(-SMALLEST_CONTEXT // limits.block_size)
        return cls(
            tokens=growing(SMALLEST_TOKENS, limits.max_tokens),
            requests=(limits.max_requests,),
            decodes=growing(1, limits.max_requests),
            blocks=growing(context, limits.max_blocks),
        )


def growing(smallest: int, most: int) -> tuple[int, ...]:
    """smallest, STEP times that and so on, and `most`."""
    sizes, size = [], smallest
    while size < most:
        sizes.append(size)
        size *= STEP
    return (*sizes, most)
