"""Chooses every part of an engine, once, and puts them together. After this: only method calls."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.assemble.choosing import (
    Chosen,
    check_ranks,
    check_world,
    choose,
    find_buckets,
    fit_context,
)
from engine.config import EngineConfig, resolve
from engine.facts import EngineFacts, ModelFacts
from engine.loop import EngineLoop
from engine.models import read_facts
from engine.platform.base import Capabilities, Platform, PlatformSpec
from engine.platform.ops import OpTable
from engine.platform.runner import Runner
from engine.platform.shapes import ShapeBuckets
from engine.plugins import PluginManager
from engine.ranks.group import JOIN_S, RankGroup
from engine.ranks.messages import Joining
from engine.ranks.runner import GroupRunner

__all__ = [
    "Chosen",
    "Engine",
    "assemble",
    "check_ranks",
    "check_world",
    "choose",
    "find_buckets",
    "follow",
    "operations",
]

log = logging.getLogger(__name__)

#: What the processes of other ranks run.
FOLLOW = "engine.assemble:follow"


@dataclass(slots=True)
class Engine:
    """A loop that is ready to run, and what is known about it."""

    loop: EngineLoop
    facts: EngineFacts
    platform: Platform

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        self.loop.runner.close()
        self.platform.close()


def assemble(settings: Mapping[str, Any], plugins: PluginManager | None = None) -> Engine:
    """Build an engine from what the user set: `EngineConfig`'s fields, by name.

    Raises:
        ConfigError: a setting that does not exist, is out of range or contradicts another.
        PluginError: the platform's plugin is missing or broken.
        ModelError: the model cannot be read or is of an unknown architecture.
        UnsupportedError: the platform cannot do what the settings or the model need.
        CapacityError: the model does not fit the device.
    """
    plugins = plugins or PluginManager()
    spec, config = _configure(settings, plugins)
    check_ranks(config, plugins.find(spec.name).availability)
    if config.tensor_parallel == 1:
        return _engine(_part(spec, config, plugins))

    def environment(rank: int) -> Mapping[str, str]:
        return plugins.environment(spec, rank)

    group = RankGroup.start(
        FOLLOW,
        settings,
        config.tensor_parallel,
        environment,
        step_timeout_s=config.step_timeout_s,
    )
    try:
        return _engine(_part(spec, config, plugins, group=group))
    except BaseException:
        group.close()
        raise


def follow(settings: Mapping[str, Any], rank: int, joining: Callable[[], None]) -> Runner:
    """The runner of another rank than 0, for the same settings; its process has its environment.

    `joining` is called before the ranks meet. Raises what `assemble` does.
    """
    plugins = PluginManager()
    spec, config = _configure(settings, plugins)
    return _part(spec, config, plugins, rank=rank, joining=joining).runner


@dataclass(frozen=True, slots=True)
class _Part:
    """What one rank has."""

    spec: PlatformSpec
    config: EngineConfig
    model: ModelFacts
    platform: Platform
    chosen: Chosen
    buckets: ShapeBuckets | None
    runner: Runner


def _configure(
    settings: Mapping[str, Any], plugins: PluginManager
) -> tuple[PlatformSpec, EngineConfig]:
    spec = plugins.select(str(settings.get("device", "auto")))
    config = resolve(settings, plugins.defaults(spec)).config
    plugins.hook.engine_check_config(config=config)
    return spec, config


def _part(
    spec: PlatformSpec,
    config: EngineConfig,
    plugins: PluginManager,
    *,
    rank: int = 0,
    group: RankGroup | None = None,
    joining: Callable[[], None] = lambda: None,
) -> _Part:
    """Everything of one rank, nothing loaded yet. With a `group`, rank 0's runner leads it."""
    model = read_facts(config)
    for name, value in plugins.environment(spec, rank).items():
        os.environ.setdefault(name, value)
    platform = plugins.create_platform(spec, config, rank)
    check_world(config, platform)
    chosen = choose(config, model, platform.capabilities)
    buckets = find_buckets(config, platform, model, chosen)
    joining()
    if group is not None:
        group.await_each(Joining, "get ready", JOIN_S)
    runner = platform.runner() or _model_runner(config, platform, model, chosen, buckets, plugins)
    if group is not None:
        runner = GroupRunner(runner, group)
    return _Part(spec, config, model, platform, chosen, buckets, runner)


def _engine(part: _Part) -> Engine:
    """Load the model; the engine that is ready to run."""
    config, model, platform, chosen = part.config, part.model, part.platform, part.chosen
    num_blocks = part.runner.load()
    facts = EngineFacts(
        model=model,
        platform=part.spec.name,
        device=platform.device,
        dtype=chosen.dtype,
        quantization=config.quantization,
        max_model_len=fit_context(config, chosen, num_blocks),
        block_size=chosen.block_size,
        num_blocks=num_blocks,
        prefix_caching=config.prefix_caching and platform.capabilities.prefix_reuse,
        ledger=part.runner.report(),
        tensor_parallel=config.tensor_parallel,
        step_timeout_s=config.step_timeout_s,
    )
    weights = f" with {config.quantization} weights" if config.quantization else ""
    kind = chosen.dtype + weights
    log.info("%s as %s on %s\n%s", model.name, kind, platform.device, facts.ledger)
    loop = _loop(config, part.runner, facts, platform.capabilities, part.buckets)
    return Engine(loop, facts, platform)


def operations(platform: Platform, plugins: PluginManager) -> OpTable:
    """The table of one rank: the core's references, then the platform's, then the plugins'."""
    from engine import ops  # imports torch

    table = OpTable()
    ops.fill(table)
    platform.ops(table)
    plugins.hook.engine_register_ops(table=table, platform=platform)
    return table


def _loop(
    config: EngineConfig,
    runner: Runner,
    facts: EngineFacts,
    capabilities: Capabilities,
    buckets: ShapeBuckets | None,
) -> EngineLoop:
    return EngineLoop(
        config,
        runner,
        num_blocks=facts.num_blocks,
        block_size=facts.block_size,
        max_model_len=facts.max_model_len,
        capabilities=capabilities,
        buckets=buckets,
        vocab_size=facts.model.vocab_size,
        eos_token_ids=facts.model.eos_token_ids,
    )


def _model_runner(
    config: EngineConfig,
    platform: Platform,
    model: ModelFacts,
    chosen: Chosen,
    buckets: ShapeBuckets | None,
    plugins: PluginManager,
) -> Runner:
    """The core's runner. Imported here: what it needs, torch first, is not needed elsewhere."""
    from engine import models
    from engine.models.model import Model
    from engine.runner import ModelRunner

    table = operations(platform, plugins)
    communicator = platform.communicator(tuple(range(config.tensor_parallel)))

    def load() -> Model:
        return models.load(
            model,
            config=config,
            dtype=chosen.dtype,
            kv_dtype=chosen.kv_dtype,
            block_size=chosen.block_size,
            device=platform.device,
            ops=table,
            communicator=communicator,
            show_progress=platform.rank == 0,
        )

    return ModelRunner(
        config,
        platform,
        load,
        ops=table,
        vocab_size=model.vocab_size,
        block_size=chosen.block_size,
        max_model_len=chosen.max_model_len,
        buckets=buckets,
        communicator=communicator,
    )
