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
        self._blank = list(reversed(range(num_blocks)))  # free, without a hash; the last goes first
        self._cached: OrderedDict[int, None] = OrderedDict()  # free, with a hash
        self._by_hash: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        return len(self._blank) + len(self._cached)

    def count(self, block: int) -> int:
        """How many hold the block."""
        return self._counts[block]

    def take(self, count: int) -> list[int]:
        """Blocks with arbitrary content, each held once.

        Raises:
            CapacityError: fewer than `count` are free.
        """
        if count > self.num_free:
            raise CapacityError(f"asked for {count} blocks, {self.num_free} are free")
        blank = self._blank
        start = max(0, len(blank) - count)
        taken = blank[start:][::-1]
        del blank[start:]
        for _ in range(count - len(taken)):
            block, _ = self._cached.popitem(last=False)
            del self._by_hash[self._hash_of.pop(block)]
            taken.append(block)
        for block in taken:
            self._counts[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks with a hash, or that are held, once more."""
        for block in blocks:
            if self._counts[block] == 0:
                del self._cached[block]
            self._counts[block] += 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """Hold the blocks once less. Given from a chain's end, so its start is evicted last."""
        counts, hashes = self._counts, self._hash_of
        for block in blocks:
            count = counts[block] = counts[block] - 1
            assert count >= 0, f"block {block} was given back more than once"
            if count == 0 and block in hashes:
                self._cached[block] = None
            elif count == 0:  # nothing to reuse: it is taken first
                self._blank.append(block)

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
            if content := self._hash_of.pop(block, None):
                del self._by_hash[content]
                if self._counts[block] == 0:
                    del self._cached[block]
                    self._blank.append(block)

    def forget_all(self) -> None:
        """No content can be trusted any more."""
        self.forget(list(self._hash_of))
