"""The platform's own Pallas kernels: attention over a paged cache, and what writes to it.

Letters: T tokens of the step, N requests, H query heads, K key/value heads, D head dim, B entries
of a block table, S tokens a page, L lanes (128, 256, …). A page is what the core calls a block.

The cache of one layer is one array of the model's dtype (bfloat16 or float32):

    pages [num_pages, parts, K, S, L]       `pages.page_shape(K, D, S)` is all but the first

    D > 64    parts 2: keys in part 0 and values in part 1, D padded with zeros to L lanes
    D <= 64   parts 1: a token's key in lanes 0:64 and its value in lanes 64:128 of one row, so
              that small heads waste no memory

A head's tokens of a page are whole tiles, as the matrix unit wants them; tensor parallelism shards
axis 2. S is a power of two, at least 8 (float32) or 16 (bfloat16) and at most 256.

    from engine_tpu.kernels.attention import ragged_paged_attention
    out_THD = ragged_paged_attention(q_THD, pages, lengths_N, block_table_NB, query_start_N1,
                                     scale=…, window=None, soft_cap=None, decode=False)
    from engine_tpu.kernels.store import store_kv
    pages = store_kv(pages, k_TKD, v_TKD, slots_T)           # slot < 0: not stored

Entries of block tables that are padding may be anything; queries, keys and values of padding, too.

All of them are traced inside the caller's `jax.jit` (and `jax.shard_map` with `check_vma=False`),
return a new `pages` that is the old one's memory where the caller donates it, take `interpret=True`
to run on a CPU, and raise `UnsupportedError` for shapes that they cannot serve
(`attention.unsupported(...)` says so beforehand). What they compute from lengths, tables and slots
is the same in every layer, and the compiler computes it once a step. On chips whose two cores are
one device the heads are shared out to both, where a mesh is in force to tell.

A compiled program tells what a kernel uses of a core's memory: `used_scoped_memory_configs` of its
custom calls in `as_text()`; what a step uses of the device's: `memory_analysis()`.

Importing this package imports no jax.
"""
