"""What is to be loaded, and how."""

from dataclasses import dataclass

from engine.facts import ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """The arguments of `engine.models.load`, ready for the parts that do it."""

    facts: ModelFacts
    dtype: str
    kv_dtype: str
    quantization: str | None
    block_size: int
    device: str
    max_model_len: int
    trust_remote_code: bool
    show_progress: bool
