"""The Neuron platform's own code, with the CPU's names in place of the device's.

What else is replaced is in host_neuron.py, which brings torch.
"""

from collections.abc import Sequence

from engine.config import EngineConfig
from engine.platform import Availability, Platform, PlatformSpec, hookimpl
from engine_neuron import environment


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    """The second is the first, but that Dynamo traces its programs."""
    return [
        PlatformSpec(
            name="neuron_on_cpu", api=(1, 2), probe=probe, create=create, environment=environment
        ),
        PlatformSpec(
            name="neuron_traced", api=(1, 2), probe=probe, create=trace, environment=environment
        ),
    ]


def host_spec() -> PlatformSpec:
    return engine_platforms()[0]


def probe() -> Availability:
    return Availability(2, "Neuron's code on CPU tensors")


def create(config: EngineConfig, rank: int) -> Platform:
    from host_neuron import HostNeuron

    return HostNeuron(config, rank)


def trace(config: EngineConfig, rank: int) -> Platform:
    from host_neuron import TracedNeuron

    return TracedNeuron(config, rank)
