"""Plugin packages as strangers would publish them: each is really built and installed by pip."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from engine.platform import API_VERSION

PLATFORM = """
from engine.platform import Availability, MemoryProfiler, MemorySnapshot, Platform, PlatformSpec
from engine.platform import hookimpl


class Stub(Platform):
    name = "{name}"
    device = "{name}:0"

    def memory(self):
        raise NotImplementedError

    def attention(self, spec):
        raise NotImplementedError


def probe():
    {probe}


def create(config, rank):
    {create}


@hookimpl
def {hook}():
    return [
        PlatformSpec(
            name="{offers}", api={api}, probe=probe, create=create, priority={priority},
            defaults=lambda: {defaults}, environment=lambda rank: {{"RANK_SEEN": str(rank)}},
        )
    ]
"""


def platform(name: str, **changes: object) -> str:
    """The source of a platform's module that works, but for what `changes` breaks in it."""
    works = {
        "name": name,
        "offers": name,
        "probe": f"return Availability(2, '2 x {name}')",
        "create": "return Stub(config, rank)",
        "hook": "engine_platforms",
        "api": API_VERSION,
        "priority": 5,
        "defaults": {"block_size": 32},
    }
    return PLATFORM.format(**{**works, **changes})


COMPUTES = """
import os
import time

from engine.batch import SliceOutput, StepOutput
from engine.platform import (
    AttentionBackend, Availability, Capabilities, KVLayout, MemoryProfiler, MemorySnapshot,
    Pending, Platform, PlatformSpec, Runner, hookimpl,
)


class Memory(MemoryProfiler):
    def snapshot(self):
        return MemorySnapshot(total=1 << 30, free={free}, used=0, peak=0)

    def measure(self):
        raise AssertionError("nobody measures here")


class Narrow(Runner):
    def load(self):
        return 8

    def execute(self, batch):
        output = StepOutput(tuple(SliceOutput(tokens={tokens}) for _ in batch.slices))
        return Pending(batch, lambda: output)

    def reset(self):
        pass


class Attention(AttentionBackend):
    @classmethod
    def unsupported(cls, spec):
        return None

    def kv_layout(self):
        raise AssertionError("nobody asks here")

    def allocate(self, num_blocks):
        import torch

        size = num_blocks * self.spec.block_size
        return torch.empty(2, size, self.spec.num_kv_heads, self.spec.head_dim)

    def plan(self, step):
        size = self.spec.block_size
        table = step.block_table[0].tolist()
        slots = [table[i // size] * size + i % size for i in range(step.max_length)]
        return slots, step

    def forward(self, q, k, v, cache, plan):
        slots, step = plan
        cache[0, step.slots], cache[1, step.slots] = k, v
        keys, values = (x[slots].repeat_interleave(q.shape[1] // k.shape[1], 1) for x in cache)
        weights = (q.transpose(0, 1) @ keys.permute(1, 2, 0)) * self.spec.scale * {factor}
        first = step.max_length - len(q)
        for row in range(len(q)):
            weights[:, row, first + row + 1 :] = float("-inf")
        return (weights.softmax(-1) @ values.transpose(0, 1)).transpose(0, 1), cache

    def copy_blocks(self, cache, pairs):
        raise AssertionError("nobody copies here")


class Computes(Platform):
    name = "{name}"
    device = "cpu"
    capabilities = Capabilities(block_sizes=(4,))

    def __init__(self, config, rank):
        super().__init__(config, rank)
        {create}

    def memory(self):
        return Memory()

    def attention(self, spec):
        return Attention(spec, self.device)

    def runner(self):
        return {runner}


@hookimpl
def engine_platforms():
    probe = lambda: Availability(1, "a [pretended] device")
    return [PlatformSpec(name="{name}", api={api}, probe=probe, create=Computes, priority=7)]
"""


def computing(name: str, **changes: object) -> str:
    """The source of a platform that really computes, but for what `changes` breaks in it."""
    works = {
        "name": name,
        "free": "1 << 29",
        "tokens": "(7,)",
        "factor": 1,
        "create": "pass",
        "runner": "None",
        "api": API_VERSION,
    }
    return COMPUTES.format(**{**works, **changes})


OPERATIONS = """
from engine.platform import hookimpl


@hookimpl
def engine_register_ops(table, platform):
    table.register("shout", source="extras", priority=3)(lambda text: text.upper())


@hookimpl
def engine_check_config(config):
    if config.max_requests == 13:
        from engine.errors import ConfigError

        raise ConfigError("13 requests bring bad luck")
    if config.max_requests == 14:
        raise ZeroDivisionError("fourteen")


@hookimpl
def engine_add_commands(commands):
    commands.add_parser("greet", help="say hello").set_defaults(run=greet)


def greet(arguments):
    print("hello")
    return 0
"""


@dataclass(frozen=True)
class Package:
    """A distribution of one module."""

    name: str
    source: str
    entry: str = ""  # of its entry point; empty: as `name`
    group: str = "engine.platforms"
    module: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", self.name.replace("-", "_") + "_module")

    def pyproject(self) -> str:
        return f"""
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "{self.name}"
version = "1.5"
[project.entry-points."{self.group}"]
{self.entry or self.name} = "{self.module}"
[tool.hatch.build.targets.wheel]
include = ["{self.module}.py"]
"""


_NEWER = (API_VERSION[0], API_VERSION[1] + 1)
_OLDER = (API_VERSION[0] - 1, 9)

PACKAGES = {
    package.name: package
    for package in (
        Package("good", platform("good")),
        Package("modest", platform("modest", priority=1)),
        Package("absent", platform("absent", probe="return Availability(0, 'plug one in')")),
        Package("breaks-at-import", "import a_driver_that_nobody_has\n", entry="crash"),
        Package("breaks-at-probe", platform("liar", probe="raise OSError('bus')"), entry="liar"),
        Package(
            "weak-liar", platform("weak", probe="raise OSError('x')", priority=0), entry="weak"
        ),
        Package("breaks-at-create", platform("frail", create="raise OSError('gone')"), "frail"),
        Package("makes-no-platform", platform("odd", create="return 'a string'"), "odd"),
        Package("first-twin", platform("twin"), entry="twin"),
        Package("second-twin", platform("twin"), entry="twin"),
        Package("too-new", platform("new", api=_NEWER), entry="new"),
        Package("too-old", platform("old", api=_OLDER), entry="old"),
        Package("no-version", platform("blank", api="'1.0'"), entry="blank"),
        Package("misspelt", platform("misspelt", hook="engine_platfroms")),
        Package("other-name", platform("other-name", offers="something-else")),
        Package("wide", computing("wide")),
        Package("wide-wrong", computing("wide-wrong", factor=1.1)),
        Package("narrow", computing("narrow", runner="Narrow()")),
        Package("narrow-silent", computing("narrow-silent", runner="Narrow()", tokens="()")),
        Package("boastful", computing("boastful", free="1 << 31")),
        Package("crashes", computing("crashes", create="os._exit(9)")),
        Package("hangs", computing("hangs", create="time.sleep(60)")),
        Package("extras", OPERATIONS, group="engine.plugins"),
        Package("broken-extras", "raise RuntimeError('boom')\n", group="engine.plugins"),
        Package(
            "wrong-arguments",
            "from engine.platform import hookimpl\n"
            "@hookimpl\ndef engine_check_config(configuration): ...\n",
            group="engine.plugins",
        ),
    )
}


def install(folder: Path, *names: str) -> Path:
    """Build the packages and install them into `folder`, with pip and without a network."""
    sources = []
    for name in names:
        package = PACKAGES[name]
        source = folder.parent / "sources" / name
        source.mkdir(parents=True)
        (source / "pyproject.toml").write_text(package.pyproject())
        (source / f"{package.module}.py").write_text(package.source)
        sources.append(str(source))
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *options, "--target", str(folder), *sources],
        check=True,
    )
    return folder
