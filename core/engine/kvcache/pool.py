"""Fixed-size blocks with reference counts, and the hashes of those whose content is known.

taken (count >= 1)  --give_back-->  free, content kept under its hash  --take-->  evicted
                    <----share----  (the least recently freed is taken first)
"""

from collections import OrderedDict
from collections.abc import Iterable

from engine.errors import CapacityError


class BlockPool:
    """Blocks 0 … num_blocks-1. A free block with a hash is still found, until it is taken."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._by_hash: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def count(self, block: int) -> int:
        """How many hold the block."""
        return self._counts[block]

    def take(self, count: int) -> list[int]:
        """Blocks with arbitrary content, each held once.

        Raises:
            CapacityError: fewer than `count` are free.
        """
        if count > len(self._free):
            raise CapacityError(f"asked for {count} blocks, {len(self._free)} are free")
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._counts[block] = 1
            self._forget(block)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Hold the blocks once more, whether or not somebody else does."""
        for block in blocks:
            if self._counts[block] == 0:
                del self._free[block]
            self._counts[block] += 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """Hold the blocks once less. Given from a chain's end, so its start is evicted last."""
        for block in blocks:
            assert self._counts[block] > 0, f"block {block} was given back more than once"
            self._counts[block] -= 1
            if self._counts[block] == 0:
                self._free[block] = None
                if block not in self._hash_of:  # nothing to reuse: take it first
                    self._free.move_to_end(block, last=False)

    def find(self, content: bytes) -> int | None:
        """The block that holds the content of this hash."""
        return self._by_hash.get(content)

    def remember(self, block: int, content: bytes) -> None:
        """Let the block be found. The first block with some content stays the one found."""
        if content not in self._by_hash and block not in self._hash_of:
            self._by_hash[content] = block
            self._hash_of[block] = content

    def forget(self, blocks: Iterable[int]) -> None:
        """The content of these can be trusted no more; whoever holds them still does."""
        for block in blocks:
            self._forget(block)

    def forget_all(self) -> None:
        """No content can be trusted any more."""
        self._by_hash.clear()
        self._hash_of.clear()

    def _forget(self, block: int) -> None:
        if content := self._hash_of.pop(block, None):
            del self._by_hash[content]
