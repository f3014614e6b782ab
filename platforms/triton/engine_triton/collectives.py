"""A library of collectives that torch brings with it, as a backend under a name of the engine's.

The core makes groups through `torch.distributed.Backend`'s table of plugins: it knows no library by
name. What is built into torch is entered there too.
"""

from collections.abc import Callable
from typing import Any

from torch.distributed import Backend

Make = Callable[[Any, int, int, Any], Any]  # (store, rank, size, options) -> a c10d backend


def register(name: str, kind: str, make: Make, options: Callable[[], Any]) -> None:
    """Enter `make` under `name` for devices of that `kind`; once, however often it is asked for.

    Args:
        options: an empty object of the library's options; the time limit is set in it.
    """
    if name.upper() in Backend._plugins:
        return

    def creator(asked: Any, _: Any) -> Any:
        wanted = options()
        wanted._timeout = asked.timeout
        wanted.global_ranks_in_group = asked.global_ranks_in_group
        wanted.group_name = asked.group_id
        return make(asked.store, asked.group_rank, asked.group_size, wanted)

    Backend.register_backend(name, creator, extended_api=True, devices=[kind])
