"""Which tokens each expert computes, found on the device: no number of them comes to the host.

Assignments of tokens to experts are numbered token by token; `order` has them expert by expert,
equal experts in the order of tokens. Tiles of at most TILE neighbours in it, all of one expert, are
what the matrix kernels compute: their number depends on who chose whom, so there is room for as
many as there could be, and the rest has expert -1.

    ids      [[2, 0], [0, 1], [0, 2]]       T 3, A 2, of E 3 experts
    order    [1, 2, 4,   3,   0, 5]         token 0 is 0 and 1, token 1 is 2 and 3
    tiles    (0, 0, 3), (0, 2, 3), (1, 3, 4), (2, 4, 6), (-1, ...)     TILE 2: expert, first, end

Shape legend: T tokens, A experts active a token, E experts, N = T * A assignments.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_triton.architecture import Launch


@dataclass(frozen=True, slots=True)
class Routes:
    order_N: Tensor  # int32
    tiles: Tensor  # [most tiles, 3] int32: expert, its first place in `order`, its expert's end


@triton.jit(do_not_specialize=["assignments", "num_tiles"])
def route_kernel(
    ids,
    order,
    tiles,
    assignments,
    num_tiles,
    experts,
    TILE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A program an expert; each counts what all experts have, to know where its own begin."""
    expert = tl.program_id(0)
    all_E = tl.arange(0, BLOCK_E)
    in_block = tl.arange(0, BLOCK_N)
    counts_E = tl.zeros([BLOCK_E], tl.int32)
    for start in range(0, assignments, BLOCK_N):
        there_N = start + in_block < assignments
        ids_N = tl.load(ids + start + in_block, mask=there_N, other=0).to(tl.int32)
        counts_E += tl.histogram(ids_N, BLOCK_E, mask=there_N)
    tiles_E = (counts_E + TILE - 1) // TILE
    first = tl.sum(tl.where(all_E < expert, counts_E, 0), 0)
    end = first + tl.sum(tl.where(all_E == expert, counts_E, 0), 0)
    tile = tl.sum(tl.where(all_E < expert, tiles_E, 0), 0)
    for place in range(first, end, TILE):
        tl.store(tiles + tile * 3, expert)
        tl.store(tiles + tile * 3 + 1, place)
        tl.store(tiles + tile * 3 + 2, end)
        tile += 1
    if expert == experts - 1:
        for unused in range(tile, num_tiles):
            tl.store(tiles + unused * 3, -1)
    place = first
    for start in range(0, assignments, BLOCK_N):
        number_N = start + in_block
        ids_N = tl.load(ids + number_N, mask=number_N < assignments, other=-1).to(tl.int32)
        mine_N = (ids_N == expert).to(tl.int32)
        before_N = tl.cumsum(mine_N, 0) - mine_N
        tl.store(order + place + before_N, number_N, mask=mine_N != 0)
        place += tl.sum(mine_N, 0)


def most_tiles(assignments: int, experts: int, tile: int) -> int:
    """Tiles that there can be: each expert that is chosen at all may leave its last one short."""
    chosen = min(assignments, experts)
    return (assignments + chosen * (tile - 1)) // tile


def route(ids_TA: Tensor, experts: int, tile: int, launch: Launch) -> Routes:
    """
    Args:
        ids_TA: int64, below `experts`, the ones of a token all different.
        launch: of the table's kernel "route".
    """
    assignments = ids_TA.numel()
    tiles = most_tiles(assignments, experts, tile)
    order = torch.empty(assignments, dtype=torch.int32, device=ids_TA.device)
    table = torch.empty(tiles, 3, dtype=torch.int32, device=ids_TA.device)
    route_kernel[(experts,)](
        ids_TA.contiguous(), order, table, assignments, tiles, experts, TILE=tile,
        BLOCK_E=triton.next_power_of_2(experts), **launch.blocks, **launch.options,
    )  # fmt: skip
    return Routes(order, table)
