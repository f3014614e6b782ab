"""Tensor parallelism: one model over several ranks, each a process with a device of its own.

    rank 0, which has the loop                     ranks 1 … N-1: `python -m engine.ranks.process`
    GroupRunner ── Batch, to all of them ────────→ the same runner
        └─ own runner ←── collectives, every step ──→ (on its share of the weights and heads)

Every rank gets every batch and keeps its own table of requests. What must be equal on all of them
is agreed on (`engine.runner.agreement`), not hoped for. A rank that fails is missing in all further
steps: the engine ends, with an error that says which rank it was and what it said.
"""

from engine.ranks.group import RankGroup
from engine.ranks.runner import GroupRunner

__all__ = ["GroupRunner", "RankGroup"]
