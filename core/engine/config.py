"""What the user asked for, merged with what the platform prefers. Frozen after `resolve`."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8", "int4", "fp8")
_COUNTS = (
    "max_batch_tokens",
    "max_requests",
    "block_size",
    "max_model_len",
    "num_blocks",
    "tensor_parallel",
)
_WORD = re.compile(r"[A-Za-z][\w@=.+-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Every setting of the engine. `None` or "auto": decided at start, from model and platform."""

    model: str = "embedded"  # a folder, a hub name, or the model shipped with the engine
    revision: str | None = None  # of a hub name
    device: str = "auto"  # NAME, or NAME:INDEX,…
    dtype: str = "auto"  # of weights and activations
    kv_dtype: str = "auto"  # of the KV cache; auto: as dtype
    quantization: str | None = None  # of linear layers' weights, when they are loaded
    block_size: int | None = None  # tokens a KV block
    max_model_len: int | None = None  # tokens of prompt and output
    max_batch_tokens: int = 2048  # tokens a step
    max_requests: int = 256  # requests a step
    memory_fraction: float = 0.9  # of the device's memory, that the engine may use in all
    num_blocks: int | None = None  # KV blocks; None: what fits
    prefix_caching: bool = True
    overlap: bool | None = None  # start a step before the last one's tokens were read
    step_target_s: float | None = None  # prompts are cut to it while others decode; 0: never
    seed: int = 0  # of random choices that no request's seed decides
    trust_remote_code: bool = False
    tensor_parallel: int = 1  # ranks that share the model, each on a device or a part of one
    step_timeout_s: float | None = 300.0  # a step that takes longer hangs; None or 0: no limit

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        for name in ("step_target_s", "step_timeout_s"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds >= 0:
                raise ConfigError(f"{name} must not be negative, got {seconds}; 0: no limit")
        if not 0 < self.memory_fraction <= 1:
            raise ConfigError(f"memory_fraction must be in (0, 1], got {self.memory_fraction}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ConfigError(
                f"quantization must be one of {', '.join(QUANTIZATIONS)}, or left out, got"
                f" {self.quantization!r}"
            )


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration and, for each setting, who decided it: "default", "platform" or "user"."""

    config: EngineConfig
    provenance: Mapping[str, str]


def resolve(user: Mapping[str, Any], platform: Mapping[str, Any]) -> Resolved:
    """Merge the engine's defaults < the platform's < the user's own choices.

    Raises:
        ConfigError: a setting that does not exist, or a value out of range.
    """
    known = {f.name for f in dataclasses.fields(EngineConfig)}
    for source, settings in (("user", user), ("platform", platform)):
        if unknown := sorted(set(settings) - known):
            raise ConfigError(f"unknown {source} settings {unknown}; there are {sorted(known)}")
    provenance = dict.fromkeys(known, "default")
    provenance |= dict.fromkeys(platform, "platform") | dict.fromkeys(user, "user")
    return Resolved(EngineConfig(**{**platform, **user}), provenance)


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """`--device`, taken apart: "npu:0,1" is ("npu", (0, 1)); no index is ().

    What is no number is a word of the platform's own: "npu:small" is ("npu", (), ("small",)).
    """

    name: str
    indices: tuple[int, ...] = ()
    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "DeviceChoice":
        name, colon, rest = text.partition(":")
        parts = rest.split(",") if colon else []
        numbers = tuple(int(part) for part in parts if part.isdecimal())
        words = tuple(part for part in parts if _WORD.fullmatch(part))
        if not name or len(numbers) + len(words) < len(parts):
            raise ConfigError(f"--device takes NAME or NAME:INDEX,INDEX…, got {text!r}")
        return cls(name, numbers, words)
