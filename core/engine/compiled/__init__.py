"""Parts for platforms that torch drives; they import torch, so they stand apart from the contract.

A device that is reached through a torch device, a backend of `torch.compile` and a backend of
`torch.distributed`, and whose programs have static shapes, is a `CompiledPlatform`.
"""

from engine.compiled.communicator import ProgramCommunicator
from engine.compiled.group import GroupCommunicator, Groups
from engine.compiled.maker import ProgramMaker
from engine.compiled.platform import CompiledPlatform
from engine.compiled.programs import ProgramCache
from engine.compiled.runner import CompiledRunner

__all__ = [
    "CompiledPlatform",
    "CompiledRunner",
    "GroupCommunicator",
    "Groups",
    "ProgramCache",
    "ProgramCommunicator",
    "ProgramMaker",
]
