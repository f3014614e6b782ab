"""How torch's module of a device is called: a stand-in writes down the calls."""

from contextlib import contextmanager

import pytest
import torch

from engine_triton.device import TorchDevice


class Module:
    """Of the names that torch gives every GPU's module, those that are used."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.stream = "main"
        self.ends_badly = False

    def set_device(self, index):
        self.calls.append(("set_device", index))

    def graph_pool_handle(self):
        self.calls.append("graph_pool_handle")
        return "pool"

    def current_stream(self):
        return self.stream

    def set_stream(self, stream):
        self.stream = stream

    @contextmanager
    def graph(self, graph, *, pool, capture_error_mode):
        """As torch's: when a capture cannot be ended, its own stream stays the current one."""
        self.calls.append(("graph", pool, capture_error_mode))
        self.stream = "capturing"
        yield
        if self.ends_badly:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.stream = "main"

    def Event(self):
        return Event(self.calls)

    def mem_get_info(self, index):
        return 3, 10

    def memory_reserved(self, index):
        return 4

    def max_memory_reserved(self, index):
        return 6


class Event:
    def __init__(self, calls):
        self.record = lambda: calls.append("record")
        self.synchronize = lambda: calls.append("wait")


class Graph:
    def replay(self):
        """Nothing was recorded."""


@pytest.fixture
def module(monkeypatch) -> Module:
    made = Module()
    monkeypatch.setattr(torch, "get_device_module", lambda kind: made)
    return made


@pytest.fixture
def device(module) -> TorchDevice:
    return TorchDevice("gpu", 2, Graph)


def test_kernels_that_name_no_device_are_launched_on_this_one(module, device):
    assert device.name == "gpu:2"
    assert module.calls == [("set_device", 2)]


def test_all_captures_share_one_pool_and_do_not_mind_other_threads(module, device):
    first = device.capture(lambda: torch.ones(1))
    device.capture(lambda: torch.ones(2))
    assert module.calls[1:] == [
        "graph_pool_handle",
        ("graph", "pool", "thread_local"),
        ("graph", "pool", "thread_local"),
    ]
    assert first.result.tolist() == [1.0]
    first.replay()


@pytest.mark.parametrize("ends_badly", [False, True])
def test_after_a_capture_that_failed_work_goes_on_where_it_was(module, device, ends_badly):
    module.ends_badly = ends_badly

    def work():
        if not ends_badly:
            raise RuntimeError("not permitted")
        return torch.ones(1)

    with pytest.raises(RuntimeError):
        device.capture(work)
    assert module.stream == "main"


def test_a_copy_to_the_host_is_waited_for_and_nothing_after_it(module, device, monkeypatch):
    """The event is recorded when the copy is started, not when it is waited for."""
    empty = torch.empty
    pinned = []

    def host(shape, *, dtype, pin_memory):
        pinned.append(pin_memory)
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", host)
    wait = device.to_host(torch.arange(3))
    assert module.calls[1:] == ["record"]
    assert pinned == [True]
    assert wait().tolist() == [0, 1, 2]
    assert module.calls[1:] == ["record", "wait"]


def test_memory_is_the_driver_s_and_the_allocator_s(device):
    assert device.memory() == (3, 10)
    assert device.reserved() == (4, 6)
