"""Whether FlashAttention-3 is installed, told from files alone: nothing of it is imported."""

import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from importlib.metadata import distributions
from importlib.util import find_spec

#: The module that has the functions, and the distribution that brings it.
MODULE = "flash_attn_interface"
DISTRIBUTION = "flash-attn-3"
INSTALL = (
    "pip install --no-build-isolation"
    " 'git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper'"
)


def missing(folders: Sequence[str] | None = None) -> str | None:
    """Why it cannot be used, and what brings it; None where it is there.

    `folders` are searched in place of `sys.path`.
    """
    found = find_spec(MODULE) if folders is None else PathFinder.find_spec(MODULE, list(folders))
    if found is None:
        return f"FlashAttention-3 is not installed; {INSTALL}"
    return None


def version(folders: Sequence[str] | None = None) -> str:
    """ "3.0.0"; "of an unknown version" where its distribution does not tell."""
    found = distributions(name=DISTRIBUTION, path=sys.path if folders is None else list(folders))
    return next((str(one.version) for one in found), "of an unknown version")


def note(folders: Sequence[str] | None = None) -> str:
    """For people who look at what the platform offers."""
    if missing(folders):
        return "attention=flash3: not installed"
    return f"attention=flash3: FlashAttention-3 {version(folders)}"
