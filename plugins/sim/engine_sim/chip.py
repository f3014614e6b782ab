"""The devices themselves: what a driver would know of each, for the whole process.

from engine_sim.chip import chip
chip(0).clock.step_s, chip(0).counts.synchronizations, chip(0).books.peak
"""

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from engine_sim.clock import Clock
from engine_sim.errors import DeviceLostError, SimError, SynchronizationError
from engine_sim.memory import Books
from engine_sim.words import DEVICES, Options


@dataclass(slots=True)
class Counts:
    """Of everything since the process began."""

    operations: int = 0
    by_name: Counter[str] = field(default_factory=Counter)  # operations
    to_device: int = 0  # copies
    to_host: int = 0
    between_devices: int = 0
    synchronizations: int = 0


#: An operation as a compiler sees it: its name, the shapes and dtypes of tensors, other arguments.
Signature = tuple[str, Hashable]


class Program:
    """What runs for one shape of step: exactly the operations that were recorded."""

    def __init__(self) -> None:
        self.signatures: set[Signature] = set()

    def __len__(self) -> int:
        return len(self.signatures)


class Chip:
    def __init__(self, index: int) -> None:
        self.index = index
        self.name = f"sim:{index}"
        self.books = Books(self.name)
        self.clock = Clock()
        self.counts = Counts()
        self.recording: Program | None = None
        self.replaying: Program | None = None
        self.may_wait = True
        self.lost: str | None = None  # why

    def open(self, options: Options) -> None:
        """As the options say, from now on; who opens a device that is in use, decides for all."""
        self.books.limit = options.memory
        self.clock.profile = options.profile
        self.lost = None

    def wait(self, why: str) -> None:
        """The host waits for the device's work.

        Raises:
            SynchronizationError: it must not, here.
            DeviceLostError: there is nothing to wait for.
        """
        self.counts.synchronizations += 1
        if not self.may_wait:
            raise SynchronizationError(f"{self.name}: {why} waits for the device inside a step")
        self.check_present()

    def check_present(self) -> None:
        """
        Raises:
            DeviceLostError: the device is lost.
        """
        if self.lost is not None:
            raise DeviceLostError(f"{self.name} is lost: {self.lost}")

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        """Within the block, whoever waits for the device fails."""
        before, self.may_wait = self.may_wait, False
        try:
            yield
        finally:
            self.may_wait = before

    @contextmanager
    def record(self, program: Program) -> Iterator[None]:
        """Within the block, operations are added to `program`."""
        self.recording = program
        try:
            yield
        finally:
            self.recording = None

    @contextmanager
    def replay(self, program: Program) -> Iterator[None]:
        """Within the block, any operation that is not `program`'s fails."""
        self.replaying = program
        try:
            yield
        finally:
            self.replaying = None


_CHIPS = tuple(Chip(index) for index in range(DEVICES))


def chip(index: int) -> Chip:
    """
    Raises:
        SimError: there is no such device.
    """
    if not 0 <= index < len(_CHIPS):
        raise SimError(f"there is no sim:{index}: devices are sim:0 to sim:{len(_CHIPS) - 1}")
    return _CHIPS[index]
