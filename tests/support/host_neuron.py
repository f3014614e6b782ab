"""What stands in for a Neuron core: CPU tensors, gloo, and a memory that is a number.

Kernels are their torch references. The module `neuron_on_cpu` offers it to the engine.
"""

import torch

from engine.compiled import ProgramMaker
from engine_neuron.platform import NeuronPlatform

GIB = 2**30


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


class StepwiseMaker(ProgramMaker):
    """Its programs have one shape each, as those of a compiler, and run operation by operation.

    Tracing a program takes Dynamo a second; an engine has some twenty, and the conformance kit
    starts eighty engines. `TracedNeuron` is for showing that each can be traced, as one graph.
    """

    def __init__(self):
        super().__init__("eager")

    def make(self, compute):
        first = []

        def run(*tensors):
            shapes = [(x.shape, x.dtype) for x in tensors]
            if not first:
                self.num_compiled += 1
                first.append(shapes)
            assert shapes == first[0], f"a program of {first[0]} was given {shapes}"
            return compute(*tensors)

        return run


class HostNeuron(NeuronPlatform):
    name = "neuron_on_cpu"
    torch_device = "cpu"
    distributed_backend = "gloo"

    def __init__(self, config, rank=0):
        super().__init__(config, rank)
        self.maker = StepwiseMaker()

    def _open(self, indices):
        self._calls = HostCalls()

    @property
    def compiler(self):
        return "none: programs run operation by operation"


class TracedNeuron(HostNeuron):
    """Its compiler keeps the graphs that Dynamo gives it, and runs them as they were traced."""

    name = "neuron_traced"

    def __init__(self, config, rank=0):
        super().__init__(config, rank)
        self.graphs_made: list[torch.fx.GraphModule] = []
        self.maker = ProgramMaker(self.dynamo_backend)

    def dynamo_backend(self, graph, examples):
        self.graphs_made.append(graph)
        return graph.forward
