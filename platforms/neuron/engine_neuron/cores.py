"""Which core a rank computes on."""

from collections.abc import Sequence

from engine.errors import ConfigError

VARIABLE = "NEURON_RT_VISIBLE_CORES"


def choose(rank: int, indices: Sequence[int], visible: str) -> int:
    """The rank's core.

    Args:
        indices: of `--device neuron:4,5`; none: what is visible decides.
        visible: the runtime's variable: "7", "4-7", "0,2"; empty: all are.

    Raises:
        ConfigError: there is none for this rank.
    """
    if indices:
        return _nth(indices, rank, f"--device names {len(indices)}")
    if not visible:
        return rank
    cores = _expanded(visible)
    if len(cores) == 1:
        return cores[0]  # the rank's own: see `environment`
    return _nth(cores, rank, f"{VARIABLE}={visible} has {len(cores)}")


def _nth(cores: Sequence[int], rank: int, why: str) -> int:
    if rank >= len(cores):
        raise ConfigError(f"rank {rank} has no core: {why}; name one for each rank, or none")
    return cores[rank]


def _expanded(visible: str) -> list[int]:
    cores: list[int] = []
    try:
        for part in visible.split(","):
            first, _, last = part.partition("-")
            cores += range(int(first), int(last or first) + 1)
    except ValueError:
        raise ConfigError(
            f"{VARIABLE}={visible!r} is no list of cores such as 0-3 or 0,2"
        ) from None
    if not cores:
        raise ConfigError(f"{VARIABLE}={visible!r} names no core")
    return cores
