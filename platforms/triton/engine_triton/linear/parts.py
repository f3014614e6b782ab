"""K divided among programs where features alone would leave processors idle.

Each program stores the sum of its part in float32; a second kernel adds the parts in order, so that
equal inputs give equal bits, which additions to memory by whoever comes first would not.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

#: Programs a processor, below which K is divided, and the fewest blocks of K in a part.
WAVES = 2
FEWEST_STEPS = 4
MOST_PARTS = 16
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Parts:
    count: int
    steps: int  # blocks of K in each but the last

    @classmethod
    def of(cls, programs: int, blocks_of_k: int, processors: int) -> "Parts":
        """So many that all processors are busy, as far as parts stay worth their second kernel."""
        wanted = min(WAVES * processors // programs, blocks_of_k // FEWEST_STEPS, MOST_PARTS)
        steps = -(-blocks_of_k // max(1, wanted))
        return cls(-(-blocks_of_k // steps), steps)


@triton.jit(do_not_specialize=["numbers"])
def add_parts_kernel(parts, bias, out, numbers, outputs, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < numbers
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(COUNT):
        total += tl.load(parts + part * tl.cast(numbers, tl.int64) + at, mask=there, other=0.0)
    if bias is not None:
        total += tl.load(bias + at % outputs, mask=there, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=there)


def add_parts(parts: Tensor, bias: Tensor | None, out_MO: Tensor) -> None:
    """Writes the sum over the first dimension of `parts`, [P, M, O] float32, plus `bias`."""
    numbers = out_MO.numel()
    add_parts_kernel[(triton.cdiv(numbers, BLOCK),)](
        parts, bias, out_MO, numbers, out_MO.shape[-1], COUNT=len(parts), BLOCK=BLOCK
    )
