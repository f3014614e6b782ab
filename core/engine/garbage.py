"""When Python looks for garbage: not while everything that stays is still being made."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_for_later() -> Iterator[None]:
    """Python looks through more and more objects while torch is imported and a model is loaded, and
    finds them all in use: a tenth of the start. Nothing is looked for inside."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
