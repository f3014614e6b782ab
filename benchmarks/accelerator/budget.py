"""Time that is given out part by part, and never more than there is."""

import time
from collections.abc import Callable


class Budget:
    """Parts ask in the order of their importance.

    What an earlier part did not use is saved for the later ones. The last parts may get less than
    their share, or nothing.
    """

    def __init__(self, total_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self.total_s = total_s
        self._promised_s = 0.0  # to the parts so far

    @property
    def spent_s(self) -> float:
        return self._clock() - self._began

    @property
    def left_s(self) -> float:
        return max(0.0, self.total_s - self.spent_s)

    def grant(self, share_s: float, least_s: float) -> float | None:
        """Seconds for a part that usually takes `share_s`; None: not even `least_s` are left."""
        self._promised_s += share_s
        allowed = min(self.left_s, self._promised_s - self.spent_s)
        # Where earlier parts took longer than they should, this one has its share all the same.
        allowed = max(allowed, min(self.left_s, share_s))
        return allowed if allowed >= least_s else None
