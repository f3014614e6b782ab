"""The Neuron platform's own code with other names: the CPU's in place of the device's, and a
compiler that keeps the graphs it is given and runs them. Kernels are their torch references."""

from dataclasses import replace

import torch

import engine_neuron
from engine.platform import Availability, PlatformSpec, hookimpl
from engine_neuron.platform import NeuronPlatform

GIB = 2**30
[REAL] = engine_neuron.engine_platforms()


class HostCalls:
    """A core of 16 GiB, of which nothing is held."""

    def __init__(self) -> None:
        self.reserved = 0
        self.synchronized = 0

    def synchronize(self) -> None:
        self.synchronized += 1

    def total_memory(self) -> int:
        return 16 * GIB

    def memory_reserved(self) -> int:
        return self.reserved

    def max_memory_reserved(self) -> int:
        return self.reserved

    def empty_cache(self) -> None:
        """The host has none."""


class HostNeuron(NeuronPlatform):
    torch_device = "cpu"
    distributed_backend = "gloo"

    def __init__(self, config, rank=0):
        super().__init__(config, rank)
        self.graphs_made: list[torch.fx.GraphModule] = []

    def _open(self, indices):
        self._calls = HostCalls()

    def dynamo_backend(self, graph, examples):
        self.graphs_made.append(graph)
        return graph.forward


def probe() -> Availability:
    return Availability(2, "a stand-in for Neuron cores, on CPU tensors")


@hookimpl
def engine_platforms() -> list[PlatformSpec]:
    return [replace(REAL, name="neuron_on_cpu", probe=probe, create=HostNeuron)]


def host_spec() -> PlatformSpec:
    [spec] = engine_platforms()
    return spec
