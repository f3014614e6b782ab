"""Attention over a paged cache of keys and values, in Triton kernels.

store.py      a step's keys and values into the cache; with norm and rotary embedding before it
decode.py     requests with one row: their keys are split among programs, and merged
prefill.py    requests with several rows: causal tiles, from a list of work made once a step
blocks.py     whole blocks copied, within a cache or between two
layout.py     what a cache looks like, in which number formats
numbers.py    fp8 by bits, for kernels; saturation
tiles.py      what the two kinds of attention share: a tile of keys, a step of softmax
paged.py      `PagedCache`: the cache, how it is written and copied, whoever attends
backend.py    `PagedAttention`, which platforms offer to the engine
"""
