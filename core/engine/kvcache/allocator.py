"""Gives each request the blocks of its tokens: prefix reuse, copy-on-write, release.

A request's block i holds its tokens i*size : (i+1)*size. The hash of a full block covers its
tokens and, through its parent's hash, all tokens before it, and the tenant's salt: equal hashes
mean equal KV. (The chain of vLLM's automatic prefix caching; Kwon et al., 2023, section 4.)
"""

from array import array
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from engine.kvcache.pool import BlockPool
from engine.request import Request


class Reservation(NamedTuple):
    """The block table from entry `blocks_from` on, and what must be copied before the step."""

    blocks: tuple[int, ...]
    blocks_from: int
    copies: tuple[tuple[int, int], ...]


class Allocator:
    """`reuse` allows a request to read blocks that another one wrote."""

    def __init__(self, pool: BlockPool, block_size: int, *, reuse: bool, caching: bool) -> None:
        self.pool = pool
        self.block_size = block_size
        self.reuse = reuse
        self.caching = reuse and caching
        self.num_queries = 0  # tokens looked up in the prefix cache, total
        self.num_hits = 0  # tokens found, total

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def adopt_prefix(self, request: Request) -> None:
        """Begin with the longest cached prefix. The last token is always computed: it samples."""
        found = self._cached_prefix(request)
        self.pool.share(found)
        request.blocks = found
        request.num_remembered = len(found)
        request.computed = len(found) * self.block_size

    def num_cached(self, request: Request) -> int:
        """Tokens that `adopt_prefix` would find now."""
        return len(self._cached_prefix(request)) * self.block_size

    def count_lookup(self, request: Request) -> None:
        """Account for the lookup of a request that is really admitted, for the first time."""
        if self.caching and request.params.prompt_logprobs is None:
            self.num_queries += len(request)
            self.num_hits += request.computed

    def fork(self, leader: Request, request: Request) -> None:
        """Begin with all blocks of the leader's prompt; its last token is computed again."""
        shared = leader.blocks[: self.num_blocks(len(request.prompt))]
        self.pool.share(shared)
        request.blocks = list(shared)
        request.num_remembered = len(shared)  # the leader remembers them
        request.computed = len(request.prompt) - 1

    def reserve(self, request: Request, stop: int, spare: int = 0) -> Reservation | None:
        """Blocks to write tokens `computed:stop` into, or None when too few are free.

        A block that others hold too is replaced by a copy (copy-on-write). `spare` blocks
        must stay free afterwards.
        """
        first = request.computed // self.block_size
        held = len(request.blocks)
        shared = [i for i in range(first, held) if self.pool.count(request.blocks[i]) > 1]
        fresh = max(0, self.num_blocks(stop) - held)
        if not (fresh or shared or spare):  # most steps of most requests
            return Reservation((), held, ())
        if fresh + len(shared) + spare > self.pool.num_free:
            return None
        copies = []
        for i, target in zip(shared, self.pool.take(len(shared)), strict=True):
            copies.append((request.blocks[i], target))
            self.pool.give_back([request.blocks[i]])
            request.blocks[i] = target
            request.num_remembered = min(request.num_remembered, i)
        request.blocks += self.pool.take(fresh)
        changed = shared[0] if shared else held
        return Reservation(tuple(request.blocks[changed:]), changed, tuple(copies))

    def remember(self, request: Request) -> None:
        """Let others find the request's full blocks that are computed and whose tokens are known.

        Called when a step is scheduled, too: a later slice of the same step may already read
        what an earlier one writes.
        """
        if not self.caching:
            return
        known = min(request.computed, len(request.prompt) + len(request.output))
        full = known // self.block_size
        if full <= request.num_remembered:
            return
        self._hash_full_blocks(request)
        for i in range(request.num_remembered, full):
            self.pool.remember(request.blocks[i], request.block_hashes[i])
        request.num_remembered = full

    def release(self, request: Request) -> None:
        self.pool.give_back(reversed(request.blocks))
        request.blocks = []
        request.num_remembered = 0
        request.computed = 0

    def _cached_prefix(self, request: Request) -> list[int]:
        """Blocks of the longest one."""
        found: list[int] = []
        if not self.caching or request.params.prompt_logprobs is not None:
            return found
        self._hash_full_blocks(request)
        for content in request.block_hashes[: (len(request) - 1) // self.block_size]:
            if (block := self.pool.find(content)) is None:
                break
            found.append(block)
        return found

    def _hash_full_blocks(self, request: Request) -> None:
        size, hashes = self.block_size, request.block_hashes
        known = len(request.prompt) + len(request.output)
        parent = hashes[-1] if hashes else blake2b(request.cache_salt.encode()).digest()
        for start in range(len(hashes) * size, known - size + 1, size):
            parent = _digest(parent, request.span(start, start + size))
            hashes.append(parent)


def _digest(parent: bytes, tokens: Iterable[int]) -> bytes:
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=32).digest()
