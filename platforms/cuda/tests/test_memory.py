"""What the driver's library is asked for, and what is made of its silence."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from engine_cuda import memory


class Library(ModuleType):
    """Of pynvml, what is called."""

    class NVMLError(Exception):
        """Its base of all errors."""

    def __init__(self, *running, broken=""):
        super().__init__("pynvml")
        self.running = running
        self.broken = broken

    def nvmlInit(self):
        self._call("init")

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self._call("handle")
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        self._call("processes")
        assert gpu == "GPU-1"
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.running]

    def _call(self, name):
        if name == self.broken:
            raise self.NVMLError


PLACE, PACKAGE = "GPU-1", "pynvml"


@pytest.fixture
def install(monkeypatch):
    """Put a library where imports find it."""

    def put(library):
        library.__spec__ = SimpleNamespace(name=PACKAGE)
        monkeypatch.setitem(sys.modules, PACKAGE, library)

    return put


def test_the_memory_of_this_process_is_found_among_others(install):
    install(Library((1, 5), (os.getpid(), 700), (os.getpid() + 1, 9)))
    assert memory.own_memory(PLACE)() == 700


def test_a_process_that_is_not_listed_has_an_unknown_share(install):
    """As in a container, whose process numbers are its own."""
    install(Library((os.getpid() + 1, 9)))
    assert memory.own_memory(PLACE)() is None


@pytest.mark.parametrize("broken", ["init", "handle", "processes"])
def test_a_library_that_fails_knows_nothing(install, broken):
    install(Library((os.getpid(), 700), broken=broken))
    assert memory.own_memory(PLACE)() is None


def test_without_the_library_nothing_is_known(monkeypatch):
    monkeypatch.setattr(memory, "find_spec", lambda name: None)
    assert memory.own_memory(PLACE)() is None
