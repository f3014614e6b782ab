"""Decides what the settings leave open, and refuses what cannot be had."""

import hashlib
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from engine.config import DeviceChoice, EngineConfig
from engine.errors import CapacityError, ConfigError, UnsupportedError
from engine.facts import ModelFacts
from engine.platform.base import Availability, Capabilities, Platform
from engine.platform.shapes import ShapeBuckets, StepLimits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What "auto" and None became."""

    dtype: str
    kv_dtype: str
    block_size: int
    max_model_len: int


def choose(config: EngineConfig, model: ModelFacts, capabilities: Capabilities) -> Chosen:
    """Decide what the settings leave open.

    Raises:
        ConfigError: the context is longer than the model's.
        UnsupportedError: the platform cannot do what the settings ask for.
    """
    _check_overlap(config, capabilities)
    _check_quantization(config, capabilities)
    return Chosen(
        dtype=_choose_dtype(config, model, capabilities),
        kv_dtype=_choose_kv_dtype(config, model, capabilities),
        block_size=_choose_block_size(config, capabilities),
        max_model_len=_choose_context(config, model),
    )


def check_ranks(config: EngineConfig, available: Availability) -> None:
    """Whether there is a device for each rank; known before any rank is started.

    Raises:
        ConfigError: there are fewer devices, or `--device` names another number of them.
    """
    ranks, indices = config.tensor_parallel, DeviceChoice.parse(config.device).indices
    if indices and len(indices) != ranks:
        raise ConfigError(
            f"--device {config.device} names {len(indices)} device{'s'[: len(indices) > 1]}, but"
            f" tensor_parallel is {ranks}: name as many, or none for the first {ranks}"
        )
    if ranks > available.devices:
        raise ConfigError(
            f"tensor_parallel {ranks} needs as many devices, and there"
            f" {'are' if available.devices > 1 else 'is'} {available.devices}: {available.detail}"
        )


def check_world(config: EngineConfig, platform: Platform) -> None:
    """
    Raises:
        UnsupportedError: the platform cannot join so many ranks.
    """
    most = platform.capabilities.world_size
    if config.tensor_parallel > most:
        raise UnsupportedError(
            f"tensor_parallel {config.tensor_parallel} is more than platform {platform.name!r} can"
            f" join: at most {most}"
        )


def find_buckets(
    config: EngineConfig, platform: Platform, model: ModelFacts, chosen: Chosen
) -> ShapeBuckets | None:
    """The shapes of a platform that has static ones; None of others, which only hear the limits.

    Raises:
        ConfigError: they do not hold what the settings ask for.
        UnsupportedError: the platform names no shapes.
    """
    capabilities = platform.capabilities
    tokens = config.max_batch_tokens
    if not capabilities.chunked_prefill:
        tokens = max(tokens, chosen.max_model_len)  # prompts come whole
    limits = StepLimits(
        max_tokens=tokens,
        max_requests=config.max_requests,
        max_model_len=chosen.max_model_len,
        block_size=chosen.block_size,
        fingerprint=_fingerprint(config, model, chosen),
    )
    buckets = platform.buckets(limits)
    if not capabilities.static_shapes:
        return None
    if buckets is None:
        raise UnsupportedError(
            f"platform {platform.name!r} says that it has static shapes, and names none"
        )
    buckets.check(limits, whole_prompts=not capabilities.chunked_prefill)
    return buckets


def fit_context(config: EngineConfig, chosen: Chosen, num_blocks: int) -> int:
    """One request must fit the cache: shorten the context, but not one the user asked for.

    Raises:
        CapacityError: the user asked for more than fits.
    """
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


def _fingerprint(config: EngineConfig, model: ModelFacts, chosen: Chosen) -> str:
    """Of what decides a compiled program, beside its shape: the model's form, dtypes, versions."""
    form = Path(model.path, "config.json").read_bytes()
    ranks = config.tensor_parallel
    parts = (form, repr(chosen), config.quantization, ranks, version("engine"), version("torch"))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


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
