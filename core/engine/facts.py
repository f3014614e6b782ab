"""What is known once a model and a platform were chosen. Plain data that crosses processes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Read from the model's folder without loading weights or importing torch."""

    name: str  # as the user gave it
    path: str  # the local folder
    architecture: str  # as in config.json, "LlamaForCausalLM"
    dtype: str  # of the weights, as config.json states it
    vocab_size: int  # rows of the output layer
    max_model_len: int  # tokens, as the model declares
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What a started engine is. Sent once to each client."""

    model: ModelFacts
    platform: str  # "cpu"
    device: str  # as torch spells it
    dtype: str
    quantization: str | None = None  # of the weights of linear layers; None: they have the dtype
    max_model_len: int  # tokens of prompt and output that one request may have
    block_size: int
    num_blocks: int
    prefix_caching: bool
    ledger: str  # the memory ledger, lines of text
    tensor_parallel: int = 1  # ranks
    step_timeout_s: float | None = None  # a step that takes longer hangs; None or 0: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The engine's gauges and running totals, sent along with every step."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_blocks_held: int = 0  # by requests; cached blocks that nobody holds are free
    num_preemptions: int = 0  # total
    prefix_queries: int = 0  # tokens looked up, total
    prefix_hits: int = 0  # tokens found, total
    num_compiled: int = 0  # programs made so far; should not rise after the start
    step_tokens: int = 0  # of the step that this message reports
