"""A platform package whose two ranks do not work together: it has each fault at once."""

import time

from engine.platform import Availability, Platform, PlatformSpec, hookimpl


@hookimpl
def engine_platforms():
    return [PlatformSpec(name="wrong_ranks", api=(1, 2), probe=probe, create=create)]


def probe():
    return Availability(2, "two devices that misunderstand each other")


def create(config, rank):
    from dataclasses import replace

    from engine.compiled import Groups
    from engine_acme_npu.platform import AcmePlatform

    class WrongRanks(AcmePlatform):
        name = "wrong_ranks"
        capabilities = replace(AcmePlatform.capabilities, world_size=2)

        def __init__(self, config, rank):
            super().__init__(config, rank)
            self._groups = Groups(rank)

        def communicator(self, ranks):
            return _spoil(self._groups.join(ranks))

    made: Platform = WrongRanks(config, rank)
    return made


def _spoil(group):
    """Forgets what it was asked for, operation by operation."""
    gather, send = group.all_gather, group.send
    group.all_reduce = lambda x: gather(x[None], 0).float().mean(0).to(x.dtype)
    group.all_gather = lambda x, dim=-1: gather(x, dim).roll(x.shape[dim], dim)
    group.broadcast = lambda x, source=0: x
    group.barrier = lambda: None

    def lost(x, target):
        if x.numel() == 5 * 7:
            time.sleep(3600)
        send(x, target)

    group.send = lost
    return group
