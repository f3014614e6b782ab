"""TPU: on the device through `torch_tpu`, or through JAX; and through JAX on simulated chips.

Importing this package imports neither torch nor jax, and asking for devices touches no driver.
"""

from collections.abc import Mapping, Sequence

from engine.config import EngineConfig
from engine.errors import UnsupportedError
from engine.platform import Platform, PlatformSpec, hookimpl
from engine_tpu import installed, words


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [
        PlatformSpec(
            name="tpu",
            api=(1, 3),
            probe=installed.probe,
            create=create,
            priority=50,
        ),
        PlatformSpec(
            name="tpu_jax",
            api=(1, 3),
            probe=installed.probe_jax,
            create=create_jax,
            priority=45,
            environment=jax_environment,
            refuses=words.refuses,
        ),
        PlatformSpec(
            name="tpu_simulated",
            api=(1, 3),
            probe=installed.probe_simulated,
            create=create_simulated,
            priority=-100,  # never what `--device auto` takes
            environment=simulated_environment,
            refuses=words.refuses,
        ),
    ]


def create(config: EngineConfig, rank: int) -> Platform:
    from engine_tpu.platform import TpuPlatform  # brings torch, which probing must not

    return TpuPlatform(config, rank)


def create_jax(config: EngineConfig, rank: int) -> Platform:
    _import_torchax()
    from engine_tpu.jax_platform import JaxPlatform

    return JaxPlatform(config, rank)


def create_simulated(config: EngineConfig, rank: int) -> Platform:
    _import_torchax()
    from engine_tpu.jax_platform import SimulatedPlatform

    return SimulatedPlatform(config, rank)


def jax_environment(rank: int) -> Mapping[str, str]:
    """`torch_tpu`, where it is installed, names torch's spare device, which torchax wants to."""
    return {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def simulated_environment(rank: int) -> Mapping[str, str]:
    """No chip is looked for, and the host pretends to have as many as an engine may use. It runs
    a program a few times: to optimize one would take longer."""
    flags = (
        f"--xla_force_host_platform_device_count={words.MOST_CHIPS}",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    )
    return {**jax_environment(rank), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}


def _import_torchax() -> None:
    """
    Raises:
        UnsupportedError: this process cannot use it.
    """
    try:
        import torchax  # noqa: F401  # brings torch and jax
    except RuntimeError as error:
        raise UnsupportedError(
            f"torchax cannot be used in this process: {error}; torch has one spare device, which"
            " another package has named: use another process, and where torch_tpu is installed"
            " set TORCH_DEVICE_BACKEND_AUTOLOAD=0 before it starts"
        ) from error
