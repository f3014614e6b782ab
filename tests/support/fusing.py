"""A layer's prologue, from the core's reference operations."""

from engine.ops.reference import rms_norm, rotary


def unpack(spec, packed, prologue):
    """Queries, keys and values [T, heads, D] after the prologue."""
    heads = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
    parts = packed.qkv_TX.split([n * spec.head_dim for n in heads], dim=-1)
    q, k, v = (x.unflatten(1, (n, spec.head_dim)) for x, n in zip(parts, heads, strict=True))
    if prologue.norm_epsilon is not None:
        q = rms_norm(q, packed.query_norm_D, prologue.norm_epsilon)
        k = rms_norm(k, packed.key_norm_D, prologue.norm_epsilon)
    assert packed.cos_TR.shape[1] == prologue.rotary_dim // 2
    return *rotary(q, k, packed.cos_TR, packed.sin_TR), v


def forward_packed(self, packed, prologue, cache, plan):
    """A member of an attention backend."""
    return self.forward(*unpack(self.spec, packed, prologue), cache, plan)
