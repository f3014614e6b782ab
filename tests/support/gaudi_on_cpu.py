"""The Gaudi platform's own code, with the names of device and backends replaced by the CPU's.

What only the device can show is left out: its compiler (a backend that keeps the graphs it is given
and runs them as they are), its collectives (gloo) and its memory (numbers).
"""

from collections.abc import Sequence

from engine.config import EngineConfig
from engine.platform import Availability, Platform, PlatformSpec, hookimpl
from engine_gaudi import environment


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [
        PlatformSpec(
            name="gaudi_on_cpu", api=(1, 2), probe=probe, create=create, environment=environment
        )
    ]


def probe() -> Availability:
    return Availability(8, "Gaudi's code on CPU tensors")


def create(config: EngineConfig, rank: int) -> Platform:
    from engine.testing.null import NullMemory
    from engine_gaudi.platform import GaudiPlatform

    class GaudiOnCpu(GaudiPlatform):
        name = "gaudi_on_cpu"
        torch_device = "cpu"
        distributed_backend = "gloo"

        def __init__(self, config, rank):
            super().__init__(config, rank)
            self.graphs_made = []

        def dynamo_backend(self, graph, examples):
            self.graphs_made.append(graph)
            return graph.forward

        @property
        def compiler(self):
            return "counting"

        def memory(self):
            return NullMemory()

    return GaudiOnCpu(config, rank)
