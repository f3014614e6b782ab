"""What may follow the name in `--device tpu_jax:chips=4`."""

import re
from collections.abc import Sequence

#: Of one host.
MOST_CHIPS = 8
_CHIPS = re.compile(r"chips=(\d+)")


def chips(words: Sequence[str]) -> int:
    """Over how many chips one process divides the model."""
    return max((int(found[1]) for word in words if (found := _CHIPS.fullmatch(word))), default=1)


def refuses(words: Sequence[str]) -> str | None:
    for word in words:
        found = _CHIPS.fullmatch(word)
        if found is None or not 1 <= int(found[1]) <= MOST_CHIPS:
            return f"it takes chips=N, N from 1 to {MOST_CHIPS}, got {word!r}"
    return None
