"""How many KV blocks fit, and where the memory goes.

|---------------------------------- device total ----------------------------------|
|- others -|- weights -|- runtime -|- activations -|- programs -|- KV -|- reserve -|
           |------------------ memory_fraction of the total -----------|
"""

from dataclasses import dataclass, replace

from engine.errors import CapacityError
from engine.platform import MemorySnapshot

#: Set aside for activations where the device cannot tell a step's peak.
STATISTICS_SHARE = 0.1
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Bytes. `reserve` is what the engine leaves alone."""

    total: int
    others: int  # held by other processes
    weights: int
    runtime: int  # held by this process beside the weights: libraries, tables
    activations: int  # the most that a step needs for a moment
    kv: int
    num_blocks: int
    block_size: int  # tokens
    limited_by: str  # why there are not more blocks
    programs: int = 0  # set aside for what the device prepares before the first step

    @property
    def reserve(self) -> int:
        moment = self.activations + self.programs
        return self.total - (self.others + self.weights + self.runtime + moment + self.kv)

    def cut(self, num_blocks: int, why: str = "all that fits another rank") -> "Ledger":
        """With no more than so many blocks."""
        if num_blocks >= self.num_blocks:
            return self
        kv = self.kv // self.num_blocks * num_blocks
        return replace(self, num_blocks=num_blocks, kv=kv, limited_by=why)

    def __str__(self) -> str:
        rows = [
            ("device total", self.total, ""),
            ("other processes", self.others, ""),
            ("weights", self.weights, ""),
            ("runtime", self.runtime, ""),
            ("activations", self.activations, "peak of a step"),
            *([("programs", self.programs, "")] if self.programs else []),
            ("KV cache", self.kv, self._capacity()),
            ("reserve", self.reserve, ""),
        ]
        lines = [f"{name:16}{size / MIB:10,.1f} MiB  {note}".rstrip() for name, size, note in rows]
        return "\n".join(lines)

    def _capacity(self) -> str:
        tokens = self.num_blocks * self.block_size
        return f"{self.num_blocks:,} blocks, {tokens:,} tokens; {self.limited_by}"


def size_cache(
    *,
    start: MemorySnapshot,
    loaded: MemorySnapshot,
    weights: int,
    activations: int,
    fraction: float,
    block_bytes: int,
    block_size: int,
    most_blocks: int,
    wanted: int | None,
    cache_share: float = 1.0,
    programs: int = 0,
) -> Ledger:
    """Decide the number of blocks.

    `start` was taken before anything was loaded, `loaded` just now. `most_blocks` is what all
    requests could ever use; `wanted` is the user's own number; `cache_share` is the most that the
    cache may take of what the fraction allows.

    Raises:
        CapacityError: not even one block fits, or not as many as wanted.
    """
    others = max(0, start.total - start.free - start.used)
    runtime = max(0, loaded.used - weights)
    beside = activations + programs
    room = int(loaded.total * fraction) - others - weights - runtime - beside
    room = min(room, loaded.free - beside)
    share = int(loaded.total * fraction * cache_share)
    limit = "all that fits" if room <= share else "the device's share for a cache"
    room = min(room, share)
    fit = max(0, room // block_bytes)
    num_blocks = min(fit, most_blocks) if wanted is None else wanted
    if num_blocks < 1 or num_blocks > fit:
        left = f"of {loaded.total / MIB:,.1f} MiB (memory_fraction {fraction})"
        raise _too_many(max(1, num_blocks), block_bytes, max(0, room), left)
    reasons = {wanted: "as asked for", fit: limit}
    return Ledger(
        total=loaded.total,
        others=others,
        weights=weights,
        runtime=runtime,
        activations=activations,
        kv=num_blocks * block_bytes,
        num_blocks=num_blocks,
        block_size=block_size,
        limited_by=reasons.get(num_blocks, "all that max_requests can use"),
        programs=programs,
    )


def _too_many(num_blocks: int, block_bytes: int, room: int, of: str) -> CapacityError:
    return CapacityError(
        f"{num_blocks} KV blocks of {block_bytes:,} bytes need"
        f" {num_blocks * block_bytes / MIB:,.1f} MiB, but {room / MIB:,.1f} MiB are left {of};"
        " raise memory_fraction, lower max_model_len or max_requests, or use a smaller model"
    )
