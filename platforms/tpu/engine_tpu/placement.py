"""Which chip has what of a model: Megatron's division (Shoeybi et al., 2019), told to XLA.

The model's code computes on whole tensors in one process. Weights lie divided over the chips; the
compiler divides what is computed from them, and adds the collectives.

    fused projections    [queries | keys | values], [gate | up]     each part by its rows
    output projections   by columns: partial sums, one all-reduce
    vocabulary           by rows
    caches, attention    by heads of keys and values
"""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine.platform import AttentionSpec

AXIS = "chips"
WHOLE = PartitionSpec()
ROWS = PartitionSpec(AXIS, None)
COLUMNS = PartitionSpec(None, AXIS)


class Placement:
    """Over the devices of `mesh`, which has one axis."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.size = mesh.size

    @classmethod
    def over(cls, devices: Sequence[jax.Device]) -> "Placement":
        return cls(Mesh(list(devices), (AXIS,)))

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self.mesh, spec)

    def constrain(self, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        if self.size == 1:
            return x
        constrained: jax.Array = jax.lax.with_sharding_constraint(x, self.sharding(spec))
        return constrained

    def heads_on_chips(self, num_kv_heads: int) -> int:
        """Heads of keys and values that the cache has: each chip has one at least."""
        return max(num_kv_heads, self.size)

    def refuses(self, spec: AttentionSpec) -> str | None:
        heads, kv_heads, size = spec.num_heads, spec.num_kv_heads, self.size
        if heads % size or (kv_heads % size and size % kv_heads):
            return f"{heads} heads over {kv_heads} cannot be divided evenly over {size} chips"
        return None

    def by_rows(self, out_features: int, in_features: int, parts: Sequence[int]) -> bool:
        """Whether a projection is divided by rows. `parts`: of what it gives, as it is used."""
        if len(parts) > 1:
            return all(part % self.size == 0 for part in parts)
        return out_features > in_features and out_features % self.size == 0

    def columns(self, in_features: int) -> PartitionSpec:
        return COLUMNS if in_features % self.size == 0 else WHOLE

    def rows(self, count: int) -> PartitionSpec:
        return ROWS if count % self.size == 0 else WHOLE
