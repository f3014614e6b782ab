"""How many tokens of prompts a step may compute while others wait for their next token.

Everybody in a step waits for the whole of it. Where a long prompt takes seconds, those who decode
beside it would stand still for seconds; so it is cut into parts that take about as long as somebody
likes to wait. How long a token takes depends on the model and the machine, on what else that does,
and on the contexts, and is learned from the steps themselves.
"""

import math
import sys

from engine.batch import Batch

#: A prompt goes on, also where decoding alone takes longer than the target.
LEAST_TOKENS = 16


class Pace:
    """Keeps to `target_s` seconds a step; None or 0: no limit."""

    def __init__(self, target_s: float | None) -> None:
        self.target_s = target_s or math.inf
        self.tokens = math.inf  # of prompts in a step; infinite: nothing is known yet

    def observe(self, batch: Batch, seconds: float) -> None:
        """The step took so long.

        With t tokens of prompts in s seconds, t * target_s / s would have met the target, if a step
        had nothing else to do. It has, so that is too low after a small step and too high after a
        large one, but repeated it arrives: at a step of a + b*t seconds, if a < target_s. Down it
        goes at once; up only half of the way (geometrically) with each step, for the quickest of
        them are no rule. A step with fewer tokens than it was allowed says nothing against more.
        """
        if self.target_s == math.inf or seconds <= 0:
            return
        counts = (part.stop - part.start for part in batch.slices)
        tokens = sum(count for count in counts if count > 1)
        if not tokens:
            return
        fitting = tokens * self.target_s / seconds
        if self.tokens == math.inf:
            self.tokens = fitting
        if fitting > self.tokens:
            self.tokens = math.sqrt(self.tokens * fitting)
        elif tokens >= self.limit or seconds > self.target_s:
            self.tokens = fitting

    @property
    def limit(self) -> int:
        """Tokens of prompts that a step may have beside those who decode."""
        return sys.maxsize if self.tokens == math.inf else max(LEAST_TOKENS, int(self.tokens))
