"""What the machine can do at this moment, asked before and after every round.

    {"do": "measure"} -> {"read_gb_per_s": …, "matmul_gflop_per_s": …}

Reading: the dot product of two vectors far larger than any cache, on all cores. The best of some
runs each, for a ceiling is what is possible.
"""

import json
import sys
import time
from collections.abc import Callable

import torch

READ_BYTES = 1 << 29  # each of two vectors
SIDE = 3072  # of the matrices


def main() -> int:
    torch.set_num_threads(int(sys.argv[1]))
    numbers = torch.ones(READ_BYTES // 4), torch.ones(READ_BYTES // 4)
    matrix = torch.rand(SIDE, SIDE)
    for _ in sys.stdin:
        read = 2 * READ_BYTES / _best(lambda: torch.dot(*numbers), 4)
        matmul = 2 * SIDE**3 / _best(lambda: matrix @ matrix, 4)
        print(json.dumps({"read_gb_per_s": read / 1e9, "matmul_gflop_per_s": matmul / 1e9}))
        sys.stdout.flush()
    return 0


def _best(call: Callable[[], object], times: int) -> float:
    call()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    sys.exit(main())
