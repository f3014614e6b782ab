"""Simulated time: a model of how long the device would take. Nothing sleeps.

An operation takes as long as its bytes at the reached bandwidth, or its arithmetic at the reached
rate, whichever is longer (the roofline model of Williams, Waterman and Patterson, 2009). A step
takes `launch_s` beside its operations, and a collective its latency and its bytes over the link.
"""

from engine.platform import DeviceProfile
from engine_sim.words import OWN_PROFILE


class Clock:
    """Seconds of one device. A step lasts from its launch to that of the next one."""

    def __init__(self) -> None:
        self.profile: DeviceProfile = OWN_PROFILE
        self.total_s = 0.0
        self._step_began_s = 0.0

    @property
    def step_s(self) -> float:
        """Since the last step was launched: its programs, and what followed them."""
        return self.total_s - self._step_began_s

    def launch(self) -> None:
        """A step begins."""
        self._step_began_s = self.total_s
        self.total_s += self.profile.launch_s

    def operate(self, num_bytes: float, num_flops: float, dtype: str) -> None:
        """One operation: bytes that it moves, multiplications and additions that it does."""
        profile = self.profile
        seconds = num_bytes / (profile.bandwidth * profile.reached_bandwidth)
        if num_flops:
            rate = profile.flops.get(dtype) or min(profile.flops.values())
            seconds = max(seconds, num_flops / (rate * profile.reached_flops))
        self.total_s += seconds

    def transfer(self, num_bytes: float) -> None:
        """One collective, of so many bytes over this device's link, one direction."""
        self.total_s += self.profile.link_latency_s
        if self.profile.link_bandwidth:
            self.total_s += num_bytes / self.profile.link_bandwidth
