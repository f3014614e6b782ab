"""Which replica gets which request. Decided when it arrives, from what a router knows then."""

import heapq
from array import array
from collections.abc import Callable, Mapping
from typing import TypeAlias

from engine.simulate.trace import Trace

#: Replica of each request, from the trace, the number of replicas, and seconds that a request
#: (prompt tokens, output tokens) keeps a replica busy.
Router: TypeAlias = "Callable[[Trace, int, Callable[[int, int], float]], array[int]]"


def round_robin(trace: Trace, replicas: int, work_s: Callable[[int, int], float]) -> "array[int]":
    return array("l", (i % replicas for i in range(len(trace))))


def least_outstanding(
    trace: Trace, replicas: int, work_s: Callable[[int, int], float]
) -> "array[int]":
    """To the replica that has the least left to do, as far as the router can tell.

    It keeps the tokens it sent to each, and takes them off at the predicted rate: a replica's work
    lasts until a time, and the least of these times has the least work. The replicas themselves are
    not asked, so that they can be simulated apart.
    """
    busy_until = [(0.0, replica) for replica in range(replicas)]
    chosen = array("l")
    for arrival, inputs, outputs in zip(trace.arrivals, trace.inputs, trace.outputs, strict=True):
        until, replica = busy_until[0]
        heapq.heapreplace(busy_until, (max(until, arrival) + work_s(inputs, outputs), replica))
        chosen.append(replica)
    return chosen


def same_prefix(trace: Trace, replicas: int, work_s: Callable[[int, int], float]) -> "array[int]":
    """Prompts that begin alike go to one replica, where their beginning may be in the cache.

    The second block decides, where there is one: the first is often everybody's system prompt.
    """
    if not trace.blocks:
        return least_outstanding(trace, replicas, work_s)
    # The multiplier spreads neighbouring ids (Knuth, 1998, volume 3, section 6.4).
    return array("l", (ids[:2][-1] * 2654435761 % 2**32 * replicas >> 32 for ids in trace.blocks))


ROUTERS: Mapping[str, Router] = {
    "least-tokens": least_outstanding,
    "round-robin": round_robin,
    "same-prefix": same_prefix,
}
