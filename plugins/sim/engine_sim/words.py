"""The words of `--device sim:WORD,…`, apart from indices:

static             programs for fixed shapes, made in warm-up; nothing else runs in a step
compile            the same, but a step without a program makes one
nosync             waiting for the device inside a step is an error (always so with programs)
memory=512MiB      of each device
raise@N, oom@N, hang@N, garbage@N, lost@N     a fault in the Nth step after warm-up
h200, …            the data sheet that the simulated clock goes by
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.errors import ConfigError
from engine.platform import DeviceProfile

DEVICES = 8
MEMORY = 2 * 2**30  # bytes of one device, where no word says otherwise
FAULTS = ("raise", "oom", "hang", "garbage", "lost")

_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_MEMORY = re.compile(r"memory=([1-9]\d*)(KiB|MiB|GiB)")
_FAULT = re.compile(rf"({'|'.join(FAULTS)})@([1-9]\d*)")

#: What the clock goes by where no word names a data sheet: round numbers of a small accelerator.
OWN_PROFILE = DeviceProfile(
    name="sim",
    memory_bytes=MEMORY,
    bandwidth=100e9,
    flops={"float32": 1e12, "bfloat16": 2e12, "float16": 2e12},
    launch_s=100e-6,
    link_bandwidth=10e9,
    link_latency_s=10e-6,
    source="made up",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the words ask for."""

    static: bool = False
    compiles: bool = False  # a step without a program makes one
    no_sync: bool = False
    memory: int = MEMORY  # bytes
    faults: dict[int, str] = field(default_factory=dict)  # by step, counted from 1
    profile: DeviceProfile = OWN_PROFILE


def read(words: Sequence[str]) -> Options:
    """
    Raises:
        ConfigError: a word is unknown, malformed, or contradicts another one.
    """
    options = Options()
    for word in words:
        options = _add(options, word)
    return options


def refuses(words: Sequence[str]) -> str | None:
    """Why these words cannot be used, or None when they can."""
    try:
        read(words)
    except ConfigError as error:
        return str(error)
    return None


def _add(options: Options, word: str) -> Options:
    match word:
        case "static":
            return replace(options, static=True)
        case "compile":
            return replace(options, static=True, compiles=True)
        case "nosync":
            return replace(options, no_sync=True)
    if found := _MEMORY.fullmatch(word):
        return replace(options, memory=int(found[1]) * _UNITS[found[2]])
    if found := _FAULT.fullmatch(word):
        step = int(found[2])
        if step in options.faults:
            raise ConfigError(f"step {step} has a fault already: {options.faults[step]}")
        return replace(options, faults={**options.faults, step: found[1]})
    return _add_profile(options, word)


def _add_profile(options: Options, word: str) -> Options:
    from engine_sim.profiles import names, profile  # reads a file

    if word not in names():
        faults = ", ".join(f"{name}@N" for name in FAULTS)
        raise ConfigError(
            f"unknown word {word!r}; there are static, compile, nosync, memory=512MiB (or KiB,"
            f" GiB), {faults}, and the data sheets {', '.join(names())}"
        )
    if options.profile is not OWN_PROFILE:
        raise ConfigError(f"two data sheets: {options.profile.name} and {word}; name one")
    return replace(options, profile=profile(word))
