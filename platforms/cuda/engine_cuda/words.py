"""The words of `--device cuda:WORD,…`, apart from indices:

attention=triton     the kernels of this repository (the default)
attention=flash3     FlashAttention-3, where its package is installed
"""

from collections.abc import Sequence

from engine.errors import ConfigError
from engine_cuda import flash_installed

ATTENTION = ("triton", "flash3")
_KEY = "attention="


def attention(words: Sequence[str]) -> str:
    """Which of `ATTENTION` is asked for.

    Raises:
        ConfigError: a word is unknown, or contradicts another one.
    """
    chosen = list(dict.fromkeys(words))
    for word in chosen:
        if word.removeprefix(_KEY) not in ATTENTION or not word.startswith(_KEY):
            known = " and ".join(f"{_KEY}{name}" for name in ATTENTION)
            raise ConfigError(f"there is no word {word!r}; the words are {known}")
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} contradict each other: name one")
    return chosen[0].removeprefix(_KEY) if chosen else ATTENTION[0]


def refuses(words: Sequence[str]) -> str | None:
    """Why these words cannot be used, or None when they can as far as files tell."""
    try:
        asked = attention(words)
    except ConfigError as error:
        return str(error)
    return flash_installed.missing() if asked == "flash3" else None
