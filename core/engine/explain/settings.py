"""Every setting: its value, who decided it, and why."""

from collections.abc import Iterator
from dataclasses import fields

from engine.assemble import Chosen
from engine.config import EngineConfig, Resolved
from engine.explain.findings import Setting
from engine.facts import ModelFacts
from engine.platform.base import Capabilities, Platform, PlatformSpec
from engine.platform.shapes import ShapeBuckets
from engine.scheduler import Scheduler


def explain_settings(
    resolved: Resolved,
    spec: PlatformSpec,
    platform: Platform,
    model: ModelFacts,
    chosen: Chosen,
    buckets: ShapeBuckets | None,
) -> Iterator[Setting]:
    """Every field of the configuration, in order."""
    config, capabilities = resolved.config, platform.capabilities
    decided = {
        one.name: one
        for one in (
            *_open_ones(config, spec, model, chosen, capabilities),
            *_adjusted_ones(config, chosen, capabilities, buckets),
        )
    }
    for field in fields(EngineConfig):
        name, value = field.name, getattr(config, field.name)
        yield decided.get(name) or Setting(name, value, resolved.provenance[name])


def _open_ones(
    config: EngineConfig,
    spec: PlatformSpec,
    model: ModelFacts,
    chosen: Chosen,
    capabilities: Capabilities,
) -> Iterator[Setting]:
    """What was "auto" or None."""
    if config.device == "auto":
        why = f"of the available platforms, the one of highest priority ({spec.priority})"
        yield Setting("device", spec.name, "platform", why)
    if config.dtype == "auto":
        possible = ", ".join(capabilities.dtypes)
        if chosen.dtype == capabilities.dtypes[0]:
            yield Setting("dtype", chosen.dtype, "capability", f"the device's best of {possible}")
        else:
            why = f"the checkpoint's own, as wide as the device's best of {possible}"
            yield Setting("dtype", chosen.dtype, "model", why)
    if config.kv_dtype == "auto":
        same = chosen.kv_dtype == chosen.dtype
        possible = ", ".join(capabilities.kv_dtypes)
        why = "as dtype" if same else f"dtype is none of the device's {possible}; its first"
        yield Setting("kv_dtype", chosen.kv_dtype, "capability", why)
    if config.block_size is None:
        possible = ", ".join(map(str, capabilities.block_sizes))
        yield Setting("block_size", chosen.block_size, "capability", f"the first of {possible}")
    if config.max_model_len is None:
        why = "what the model was made for; loading shortens it to what the KV cache holds"
        yield Setting("max_model_len", chosen.max_model_len, "model", why)
    if config.num_blocks is None:
        yield Setting("num_blocks", None, "loading", "as many as fit, once a step was measured")
    if config.overlap is None:
        why = "the device can" if capabilities.overlap else "the device cannot"
        yield Setting("overlap", capabilities.overlap, "capability", f"{why} overlap steps")


def _adjusted_ones(
    config: EngineConfig,
    chosen: Chosen,
    capabilities: Capabilities,
    buckets: ShapeBuckets | None,
) -> Iterator[Setting]:
    """What was asked for and cannot be had as it was. The scheduler itself is asked."""
    if config.prefix_caching and not capabilities.prefix_reuse:
        why = "asked for, but the device declares no prefix_reuse"
        yield Setting("prefix_caching", False, "capability", why)
    size, length = chosen.block_size, chosen.max_model_len
    scheduler = Scheduler(config, 1, size, length, capabilities, lambda: 0.0, buckets)
    if scheduler.max_batch_tokens > config.max_batch_tokens:
        why = f"raised from {config.max_batch_tokens}: the device takes prompts whole"
        yield Setting("max_batch_tokens", scheduler.max_batch_tokens, "capability", why)
    for name in ("max_batch_tokens", "max_requests"):
        asked, used = getattr(config, name), getattr(scheduler, name)
        if used < asked:
            why = f"lowered from {asked}: the largest of the device's static shapes"
            yield Setting(name, used, "capability", why)
