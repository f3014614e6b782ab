"""Chooses every part of an engine, once, and puts them together. After this: only method calls."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config import EngineConfig, resolve
from engine.errors import CapacityError, ConfigError, UnsupportedError
from engine.facts import EngineFacts, ModelFacts
from engine.loop import EngineLoop
from engine.models import read_facts
from engine.platform.base import Capabilities, Platform
from engine.platform.runner import Runner
from engine.plugins import PluginManager

log = logging.getLogger(__name__)

RANK = 0


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
    spec = plugins.select(str(settings.get("device", "auto")))
    config = resolve(settings, plugins.defaults(spec)).config
    plugins.hook.engine_check_config(config=config)
    model = read_facts(config)
    for name, value in plugins.environment(spec, RANK).items():
        os.environ.setdefault(name, value)
    platform = plugins.create_platform(spec, config, RANK)
    capabilities = platform.capabilities
    chosen = _Chosen(
        dtype=_choose_dtype(config, model, capabilities),
        kv_dtype=_choose_kv_dtype(config, model, capabilities),
        block_size=_choose_block_size(config, capabilities),
        max_model_len=_choose_context(config, model),
    )
    _check_overlap(config, capabilities)
    _check_quantization(config, capabilities)
    runner = platform.runner() or _model_runner(config, platform, model, chosen, plugins)
    num_blocks = runner.load()
    facts = EngineFacts(
        model=model,
        platform=spec.name,
        device=platform.device,
        dtype=chosen.dtype,
        quantization=config.quantization,
        max_model_len=_fit_context(config, chosen, num_blocks),
        block_size=chosen.block_size,
        num_blocks=num_blocks,
        prefix_caching=config.prefix_caching and capabilities.prefix_reuse,
        ledger=runner.report(),
    )
    weights = f" with {config.quantization} weights" if config.quantization else ""
    kind = chosen.dtype + weights
    log.info("%s as %s on %s\n%s", model.name, kind, platform.device, facts.ledger)
    return Engine(_loop(config, runner, facts, capabilities), facts, platform)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What "auto" and None became."""

    dtype: str
    kv_dtype: str
    block_size: int
    max_model_len: int


def _loop(
    config: EngineConfig, runner: Runner, facts: EngineFacts, capabilities: Capabilities
) -> EngineLoop:
    return EngineLoop(
        config,
        runner,
        num_blocks=facts.num_blocks,
        block_size=facts.block_size,
        max_model_len=facts.max_model_len,
        capabilities=capabilities,
        vocab_size=facts.model.vocab_size,
        eos_token_ids=facts.model.eos_token_ids,
    )


def _model_runner(
    config: EngineConfig,
    platform: Platform,
    model: ModelFacts,
    chosen: _Chosen,
    plugins: PluginManager,
) -> Runner:
    """The core's runner. Imported here: what it needs, torch first, is not needed elsewhere."""
    from engine import models, ops
    from engine.models.model import Model
    from engine.platform.ops import OpTable
    from engine.runner import ModelRunner

    table = OpTable()
    ops.fill(table)
    platform.ops(table)
    plugins.hook.engine_register_ops(table=table, platform=platform)

    def load() -> Model:
        return models.load(
            model,
            config=config,
            dtype=chosen.dtype,
            kv_dtype=chosen.kv_dtype,
            block_size=chosen.block_size,
            device=platform.device,
            ops=table,
            communicator=platform.communicator((RANK,)),
            show_progress=True,
        )

    return ModelRunner(
        config,
        platform,
        load,
        ops=table,
        vocab_size=model.vocab_size,
        block_size=chosen.block_size,
        max_model_len=chosen.max_model_len,
    )


def _choose_dtype(config: EngineConfig, model: ModelFacts, capabilities: Capabilities) -> str:
    """The user's; or the platform's best, but the checkpoint's own where it is of equal width."""
    if config.dtype != "auto":
        return _require("dtype", config.dtype, capabilities.dtypes)
    best = capabilities.dtypes[0]
    narrow = {"bfloat16", "float16"}
    own = model.dtype in capabilities.dtypes and {model.dtype, best} <= narrow
    return model.dtype if own else best


def _choose_kv_dtype(config: EngineConfig, model: ModelFacts, capabilities: Capabilities) -> str:
    if config.kv_dtype == "auto":
        dtype = _choose_dtype(config, model, capabilities)
        return dtype if dtype in capabilities.kv_dtypes else capabilities.kv_dtypes[0]
    return _require("kv_dtype", config.kv_dtype, capabilities.kv_dtypes)


def _choose_block_size(config: EngineConfig, capabilities: Capabilities) -> int:
    if config.block_size is None:
        return capabilities.block_sizes[0]
    if config.block_size not in capabilities.block_sizes:
        sizes = ", ".join(map(str, sorted(capabilities.block_sizes)))
        raise UnsupportedError(
            f"block_size {config.block_size} is not supported by this platform; it has {sizes}"
        )
    return config.block_size


def _choose_context(config: EngineConfig, model: ModelFacts) -> int:
    if config.max_model_len is None:
        return model.max_model_len
    if config.max_model_len > model.max_model_len:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is more than the {model.max_model_len} tokens"
            f" that {model.name} was made for; ask for at most that"
        )
    return config.max_model_len


def _fit_context(config: EngineConfig, chosen: _Chosen, num_blocks: int) -> int:
    """One request must fit the cache: shorten the context, but not one the user asked for."""
    fit = num_blocks * chosen.block_size
    if chosen.max_model_len <= fit:
        return chosen.max_model_len
    if config.max_model_len is not None:
        raise CapacityError(
            f"max_model_len {config.max_model_len} does not fit the KV cache, which has room for"
            f" {fit} tokens; ask for at most that, or give the cache more memory"
        )
    log.warning("context shortened from %d to %d tokens: the KV cache", chosen.max_model_len, fit)
    return fit


def _check_overlap(config: EngineConfig, capabilities: Capabilities) -> None:
    if config.overlap and not capabilities.overlap:
        raise UnsupportedError("overlap was asked for, but this platform cannot overlap steps")


def _check_quantization(config: EngineConfig, capabilities: Capabilities) -> None:
    wanted, possible = config.quantization, sorted(capabilities.quantization)
    if wanted is not None and wanted not in possible:
        raise UnsupportedError(
            f"quantization {wanted!r} is not supported by this platform; it has"
            f" {', '.join(possible) or 'none'}; without the setting, weights are used as they are"
        )


def _require(name: str, value: str, possible: tuple[str, ...]) -> str:
    if value not in possible:
        raise UnsupportedError(
            f"{name} {value!r} is not supported by this platform; it has {', '.join(possible)}"
        )
    return value
