"""The Gaudi platform: Intel's accelerators, through torch, `hpu_backend` and `hccl`.

Importing this package imports neither torch nor Intel's bridge. It sees `engine.platform` and its
neighbours only, as a stranger's platform does.
"""

from collections.abc import Mapping, Sequence

from engine.config import EngineConfig
from engine.platform import Availability, Platform, PlatformSpec, hookimpl
from engine_gaudi import bridge


@hookimpl
def engine_platforms() -> Sequence[PlatformSpec]:
    return [
        PlatformSpec(
            name="gaudi",
            api=(1, 3),
            probe=probe,
            create=create,
            priority=50,
            environment=environment,
        )
    ]


def probe() -> Availability:
    return bridge.probe()


def create(config: EngineConfig, rank: int) -> Platform:
    bridge.load()
    from engine_gaudi.platform import GaudiPlatform  # brings torch, which probing must not

    return GaudiPlatform(config, rank)


def environment(rank: int) -> Mapping[str, str]:
    """Eager mode and `torch.compile`, which the bridge chooses when torch is imported.

    Which of a machine's devices a rank gets is not said here: the bridge's collectives take that
    one of HABANA_VISIBLE_MODULES that LOCAL_RANK counts, and `--device gaudi:2,3` the platform's.
    """
    return {"PT_HPU_LAZY_MODE": "0"}
