"""Which blocks of the paged KV cache belong to whom. Knows nothing of tensors or devices."""

from engine.kvcache.allocator import Allocator, Reservation
from engine.kvcache.pool import BlockPool

__all__ = ["Allocator", "BlockPool", "Reservation"]
