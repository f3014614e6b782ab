"""Which core a rank computes on."""

from collections.abc import Sequence

from engine.errors import ConfigError

VARIABLE = "NEURON_RT_VISIBLE_CORES"


def choose(rank: int, size: int, indices: Sequence[int], visible: str) -> int:
    """The core of one of `size` ranks.

    Args:
        indices: of `--device neuron:4,5`; none: what is visible decides.
        visible: the runtime's variable: "7", "4-7", "0,2"; empty: all are.

    Raises:
        ConfigError: there is not one for each rank.
    """
    if indices:
        return _nth(indices, rank, size, f"--device names {len(indices)}")
    if visible in ("", str(rank)):
        return rank  # its own, as `environment` set it
    cores = _expanded(visible)
    return _nth(cores, rank, size, f"{VARIABLE}={visible} has {len(cores)}")


def _nth(cores: Sequence[int], rank: int, size: int, why: str) -> int:
    if len(cores) < size:
        ranks = "1 rank needs a core" if size == 1 else f"{size} ranks need a core each"
        raise ConfigError(f"{ranks}: {why}; name one for each rank, or none")
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
