"""What a part of the benchmark is told, and what it consists of."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from accelerator.records import Record

if TYPE_CHECKING:
    from engine.platform import OpTable, Platform

T = TypeVar("T")


@dataclass(frozen=True)
class Measure:
    """One thing to measure or to check. `run` gives its records one by one."""

    name: str
    run: Callable[[], Iterable[Record]]
    estimate_s: float = 2.0  # it is not begun with less left


@dataclass(frozen=True, kw_only=True)
class Job:
    """Plain data, so that it can be told to a process; the rest is made from it when asked for."""

    part: str  # the module under `accelerator`
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of this part
    device: str  # as torch spells it
    engine_device: str  # as the engine's --device
    full: bool = True  # False: the smallest sizes, to rehearse
    models: Path | None = None  # where models with random weights are kept
    facts: Mapping[str, str | float] = field(default_factory=dict)  # what was measured before
    settings: Mapping[str, Any] = field(default_factory=dict)  # more of the engine's
    done: frozenset[str] = frozenset()  # measures not to run again
    seconds: float = float("inf")  # that there are for this part

    def to_json(self) -> str:
        fields = {**vars(self), "done": sorted(self.done)}
        return json.dumps({**fields, "models": str(self.models) if self.models else None})

    @classmethod
    def from_json(cls, text: str) -> "Job":
        fields = json.loads(text)
        models = Path(fields["models"]) if fields["models"] else None
        return cls(**{**fields, "done": frozenset(fields["done"]), "models": models})

    def pick(self, full: T, small: T) -> T:
        return full if self.full else small

    @property
    def on_gpu(self) -> bool:
        return not self.device.startswith("cpu")

    def synchronize(self) -> None:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Parts:
    """The engine's own parts for a device: what a model would be given."""

    job: Job

    @cached_property
    def platform(self) -> "Platform":
        from engine.config import resolve
        from engine.plugins import PluginManager

        plugins = PluginManager()
        spec = plugins.select(self.job.engine_device)
        settings = {"device": self.job.engine_device, **self.job.settings}
        config = resolve(settings, plugins.defaults(spec)).config
        return plugins.create_platform(spec, config, 0)

    @cached_property
    def table(self) -> "OpTable":
        from engine.assemble import operations
        from engine.plugins import PluginManager

        return operations(self.platform, PluginManager())
