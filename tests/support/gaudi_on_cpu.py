"""The Gaudi platform's own code, with the names of device and backends replaced by the CPU's.

What only the device can show is left out: its compiler (graphs are run as they were traced, and
engines share what they can), its collectives (gloo) and its memory (numbers).
"""

from collections.abc import Sequence
from dataclasses import replace

from engine.config import EngineConfig
from engine.platform import Availability, Platform, PlatformSpec, hookimpl
from engine_gaudi import environment


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [
        PlatformSpec(
            name="gaudi_on_cpu", api=(1, 3), probe=probe, create=create, environment=environment
        )
    ]


def probe() -> Availability:
    return Availability(8, "Gaudi's code on CPU tensors")


def create(config: EngineConfig, rank: int) -> Platform:
    from shared_programs import SharedPrograms, run_as_traced

    from engine.testing.null import NullMemory
    from engine_gaudi.platform import GaudiPlatform

    class GaudiOnCpu(GaudiPlatform):
        name = "gaudi_on_cpu"
        torch_device = "cpu"
        dynamo_backend = run_as_traced
        distributed_backend = "gloo"

        def __init__(self, config, rank):
            super().__init__(config, rank)
            self.maker = SharedPrograms()

        @property
        def compiler(self):
            return "none"

        @property
        def generation(self):
            return "GAUDI2"  # of the two, that with fewer numbers in fp8

        def make_buckets(self, limits):
            """Fewer sizes than the device has: each takes a second to trace, and shows no more."""
            every = super().make_buckets(limits)
            return replace(every, decodes=every.decodes[::-2][::-1], blocks=every.blocks[-1:])

        def memory(self):
            return NullMemory()

    return GaudiOnCpu(config, rank)
