"""How large the pieces are that the attention kernel works on, and whether they fit in a core.

None of these sizes was tuned on a device: they keep the matrix unit's operands at a few hundred
rows, and a fetch at a few hundred KiB or more.
"""

from dataclasses import dataclass

from engine.errors import UnsupportedError

GROUP_PAGES = 8  # of a group, at most: each is an operand of the kernel
GROUP_TOKENS = 512  # of a group of pages, at most
GROUP_BYTES = 2 * 2**20  # of a group of pages, at most, unless one page has more
BLOCK_ROWS = 512  # of a block of queries for one key/value head, at most
BLOCK_BYTES = 2**20  # of a block of queries, at most
VMEM_BYTES = 48 * 2**20  # of 64 MiB, which the smallest core has
SMEM_BYTES = 960 * 2**10  # of 1 MiB; the rest is the compiler's


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    block_queries: int  # tokens of a block of queries: a power of two
    group_pages: int  # pages of a group
    head_groups: int  # key/value heads are shared out to so many cores
    heads_together: int  # heads whose products may overlap
    vmem_bytes: int  # what the kernel may use
    max_pairs: int  # of a block of queries and a request
    max_items: int  # of a pair and a group of pages that it sees


def choose(
    *,
    tokens: int,
    num_heads: int,
    page: tuple[int, ...],
    itemsize: int,
    requests: int,
    table_pages: int,
    window: int | None,
    decode: bool,
    cores: int,
) -> Tiling:
    """
    Args:
        tokens: of the step.
        num_heads: query heads.
        page: (parts, K, S, L), as `pages.page_shape` says.
        itemsize: bytes of a number of the cache.
        table_pages: entries of a request's block table.
        decode: of every request one row at most.
        cores: that share a device's work.

    Raises:
        UnsupportedError: a page, or what the grid follows, is too large for a core's memory.
    """
    parts, num_kv_heads, page_size, lanes = page
    head_groups = cores if num_kv_heads % cores == 0 else 1
    heads, per_head = num_kv_heads // head_groups, num_heads // num_kv_heads
    page_bytes = parts * heads * page_size * lanes * itemsize
    group = _group_pages(page_size, page_bytes, table_pages)
    queries = 1 if decode else _block_queries(tokens, heads, per_head, lanes, itemsize)
    rows = -(-per_head * queries // 8) * 8
    together = max(1, min(8, heads, BLOCK_ROWS // rows))
    vmem_bytes = (
        4 * heads * rows * lanes * itemsize  # queries and results, twice
        + heads * rows * (lanes + 2 * 128) * 4  # accumulators
        + 2 * group * page_bytes
        + 4 * together * rows * group * page_size * 4  # scores
        + 8 * 2**20
    )
    _check_vmem(vmem_bytes, page_size, heads, lanes)
    pairs = requests if decode else -(-tokens // queries) + requests
    items = pairs * _groups_seen(table_pages, group, page_size, queries, window)
    _check_smem(4 * (items * (group + 1) + 5 * pairs + 2048), requests, table_pages, page_size)
    return Tiling(
        block_queries=queries,
        group_pages=group,
        head_groups=head_groups,
        heads_together=together,
        vmem_bytes=vmem_bytes,
        max_pairs=pairs,
        max_items=items,
    )


def _group_pages(page_size: int, page_bytes: int, table_pages: int) -> int:
    most = min(GROUP_PAGES, GROUP_TOKENS // page_size, GROUP_BYTES // page_bytes, table_pages)
    return max(1, most)


def _block_queries(tokens: int, heads: int, per_head: int, lanes: int, itemsize: int) -> int:
    token_bytes = heads * per_head * lanes * itemsize
    most = min(128, BLOCK_ROWS // per_head, BLOCK_BYTES // token_bytes)
    return _power_of_two(max(32 // itemsize, min(most, tokens)))


def _groups_seen(
    table_pages: int, group_pages: int, page_size: int, block_queries: int, window: int | None
) -> int:
    """The most groups of pages that a pair sees."""
    all_groups = -(-table_pages // group_pages)
    if window is None:
        return all_groups
    # A pair sees so many tokens, from anywhere in a group.
    return min(all_groups, (window + block_queries - 3) // (group_pages * page_size) + 2)


def _check_vmem(needed_bytes: int, page_size: int, heads: int, lanes: int) -> None:
    if needed_bytes > VMEM_BYTES:
        raise UnsupportedError(
            f"attention over blocks of {page_size} tokens with {heads} key/value heads of {lanes}"
            f" lanes needs {needed_bytes // 2**20} MiB of a core's memory, of which it may have"
            f" {VMEM_BYTES // 2**20}; ask for a smaller block size or more devices"
        )


def _check_smem(needed_bytes: int, requests: int, table_pages: int, page_size: int) -> None:
    if needed_bytes > SMEM_BYTES:
        raise UnsupportedError(
            f"{requests} requests of {table_pages} blocks need {needed_bytes // 1024} KiB of a"
            f" core's scalar memory, of which they may have {SMEM_BYTES // 1024}; ask for blocks"
            f" of more than {page_size} tokens, fewer requests or a shorter context"
        )


def _power_of_two(most: int) -> int:
    """The greatest that is no more."""
    return 1 << (most.bit_length() - 1)
