"""AWS Neuron (Trainium) through TorchNeuron, the vendor's own torch device and compiler.

Importing this package imports no torch, and asking for devices touches no driver.
"""

from collections.abc import Mapping, Sequence

from engine.config import EngineConfig
from engine.platform import Platform, PlatformSpec, hookimpl
from engine_neuron.installed import probe


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [
        PlatformSpec(
            name="neuron",
            api=(1, 2),
            probe=probe,
            create=create,
            priority=50,
            environment=environment,
        )
    ]


def create(config: EngineConfig, rank: int) -> Platform:
    from engine_neuron.platform import NeuronPlatform  # brings torch, which probing must not

    return NeuronPlatform(config, rank)


def environment(rank: int) -> Mapping[str, str]:
    """A core belongs to one process: each rank sees its own, and no other."""
    return {
        "NEURON_RT_VISIBLE_CORES": str(rank),
        # Compiling for many minutes is the price of a start; a graph that fails to compile must be
        # an error then, not a model that runs operation by operation.
        "TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION": "1",
    }
