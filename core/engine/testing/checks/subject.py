"""What is being checked: a platform, made from its spec as the engine makes it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.assemble import Engine, assemble
from engine.config import DeviceChoice, EngineConfig, resolve
from engine.platform import Capabilities, Platform, PlatformSpec
from engine.plugins import Finding, PluginManager
from engine.testing.checks.oracle import CountingOracle, Oracle
from engine.testing.checks.origin import Origin
from engine.testing.checks.pair import RankPair


class Subject:
    """One platform under examination. `model` is the folder of the tiny model, or an empty one in
    which it is made when it is needed.

    `device` is as given to `--device`; the platform's name where it is empty.

    `counts_up` is for platforms that compute no model, as the null platform: the token after n
    must be n + 1.
    """

    def __init__(
        self, spec: PlatformSpec, model: Path, *, device: str = "", counts_up: bool = False
    ) -> None:
        self.spec = spec
        self._folder = model
        self.device = device or spec.name
        self._counts_up = counts_up
        self._platform: Platform | None = None
        self._narrow: bool | None = None
        self._oracle: Oracle | None = None
        self._pair: RankPair | None = None

    @property
    def model(self) -> Path:
        if not any(self._folder.iterdir()):
            from engine.testing.checks import tiny_model

            tiny_model.make(self._folder)
        return self._folder

    def like(self, spec: PlatformSpec) -> "Subject":
        """Another subject on the same model, with the same oracle. Close it, too."""
        made = Subject(spec, self._folder, device=self.device, counts_up=self._counts_up)
        made._oracle = self.oracle
        return made

    @property
    def origin(self) -> Origin:
        """From which another process can make the spec anew. Raises PluginError: it cannot."""
        return Origin.of(self.spec)

    @property
    def platform(self) -> Platform:
        """Made once; the checks of all levels but the runner's use this object."""
        if self._platform is None:
            self._platform = self.create()
        return self._platform

    @property
    def capabilities(self) -> Capabilities:
        return self.platform.capabilities

    @property
    def narrow(self) -> bool:
        """Whether the platform brings a runner of its own."""
        if self._narrow is None:
            runner = self.platform.runner()
            self._narrow = runner is not None
            if runner is not None:
                runner.close()
        return self._narrow

    @property
    def oracle(self) -> Oracle:
        """What the tiny model answers."""
        if self._oracle is None:
            self._oracle = CountingOracle() if self._counts_up else _model_oracle(self.model)
        return self._oracle

    @property
    def pair(self) -> RankPair:
        """Two processes with a rank each; made anew after a play that they did not end."""
        if self._pair is not None and self._pair.broken:
            self._pair.close()
            self._pair = None
        if self._pair is None:
            self._pair = RankPair(self.origin, self.device)
        return self._pair

    def create(self, **settings: Any) -> Platform:
        """A platform object with these settings over the platform's own defaults."""
        for name, value in self.spec.environment(0).items():
            os.environ.setdefault(name, value)
        return self.spec.create(self.config(**settings), 0)

    def config(self, **settings: Any) -> EngineConfig:
        user = {"model": str(self._folder), "device": self.device, **settings}
        return resolve(user, self.spec.defaults()).config

    @contextmanager
    def engine(self, **settings: Any) -> Iterator[Engine]:
        """A whole engine on the tiny model, assembled as for a user."""
        user = {"model": str(self.model), "device": self.device, **settings}
        engine = assemble(user, OnlyThis(self.spec))
        try:
            yield engine
        finally:
            engine.close()

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        if self._pair is not None:
            self._pair.close()
            self._pair = None
        if self._platform is not None:
            self._platform.close()
            self._platform = None


class OnlyThis(PluginManager):
    """Selects one given spec, whatever is installed."""

    def __init__(self, spec: PlatformSpec) -> None:
        super().__init__({})
        self._given = spec

    def select(self, device: DeviceChoice | str) -> PlatformSpec:
        return self._given

    def find(self, name: str) -> Finding:
        return Finding(self._given.name, "the given one", self._given, self._given.probe())


def _model_oracle(folder: Path) -> Oracle:
    from engine.testing.checks.tiny_model import ModelOracle

    return ModelOracle(folder)
