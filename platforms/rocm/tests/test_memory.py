"""What the driver's library is asked for, and what is made of its silence."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from engine_rocm import memory


class Library(ModuleType):
    """Of amdsmi, what is called."""

    class AmdSmiException(Exception):
        """Its base of all errors."""

    def __init__(self, *running, broken=""):
        super().__init__("amdsmi")
        self.running = running
        self.broken = broken

    def amdsmi_init(self):
        self._call("init")

    def amdsmi_get_processor_handle_from_bdf(self, place):
        self._call("handle")
        return place

    def amdsmi_get_gpu_process_list(self, gpu):
        self._call("processes")
        assert gpu == "0000:c1:00.0"
        return [{"pid": pid, "memory_usage": {"vram_mem": used}} for pid, used in self.running]

    def _call(self, name):
        if name == self.broken:
            raise self.AmdSmiException


PLACE, PACKAGE = "0000:c1:00.0", "amdsmi"


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
