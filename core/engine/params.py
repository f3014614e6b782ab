"""How one request wants its tokens chosen. Plain data that crosses the process boundary."""

import math
from dataclasses import dataclass, field

from engine.errors import RequestError

MAX_LOGPROBS = 20  # the OpenAI API's limit on top_logprobs
SEED_BITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters, named as in the OpenAI API and, beyond it, as in vLLM.

    The order of application is fixed: allowed ids, bad words and `min_tokens` mask;
    `logit_bias`; repetition, frequency and presence penalties; temperature; top-k; top-p; min-p.
    Logprobs are those of the unmodified distribution.

    Raises:
        RequestError: a value is out of range; `parameter` names the field.
    """

    n: int = 1
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # (0, 1]
    top_k: int = 0  # 0 or -1: off
    min_p: float = 0.0  # [0, 1]
    repetition_penalty: float = 1.0  # > 0; over prompt and output
    presence_penalty: float = 0.0  # [-2, 2]; over the output
    frequency_penalty: float = 0.0  # [-2, 2]; over the output
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    bad_token_ids: tuple[tuple[int, ...], ...] = ()  # bad words as token sequences
    seed: int | None = None  # None: drawn at submission
    max_tokens: int | None = 16  # None: up to the context's end
    min_tokens: int = 0  # no stop id is sampled before
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None  # of sampled tokens: 0 gives the sampled token's own only
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise RequestError(problem[1], problem[0])

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def _problems(p: SamplingParams) -> "list[tuple[str, str]]":
    """(field, message) for every value out of range."""
    checks = (
        ("n", p.n, 1 <= p.n <= 128, "from 1 to 128"),
        ("temperature", p.temperature, 0 <= p.temperature <= 100, "at least 0"),
        ("top_p", p.top_p, 0 < p.top_p <= 1, "greater than 0 and at most 1"),
        ("top_k", p.top_k, p.top_k >= -1, "-1 or 0 (off) or positive"),
        ("min_p", p.min_p, 0 <= p.min_p <= 1, "from 0 to 1"),
        ("repetition_penalty", p.repetition_penalty, 0 < p.repetition_penalty <= 100, "over 0"),
        ("presence_penalty", p.presence_penalty, -2 <= p.presence_penalty <= 2, "from -2 to 2"),
        ("frequency_penalty", p.frequency_penalty, -2 <= p.frequency_penalty <= 2, "from -2 to 2"),
        ("max_tokens", p.max_tokens, p.max_tokens is None or p.max_tokens >= 1, "at least 1"),
        ("min_tokens", p.min_tokens, p.min_tokens >= 0, "at least 0"),
        ("logprobs", p.logprobs, _fits(p.logprobs), f"from 0 to {MAX_LOGPROBS}"),
        ("prompt_logprobs", p.prompt_logprobs, _fits(p.prompt_logprobs), f"0 to {MAX_LOGPROBS}"),
        ("seed", p.seed, p.seed is None or -(2**63) <= p.seed < 2**64, "a 64-bit integer"),
    )
    found = [
        (name, f"{name} must be {rule}, got {value}")
        for name, value, right, rule in checks
        if not right
    ]  # a comparison with NaN is false, so NaN is refused by the same rules
    if any(not math.isfinite(bias) or abs(bias) > 100 for bias in p.logit_bias.values()):
        found.append(("logit_bias", "logit_bias values must be from -100 to 100"))
    if p.max_tokens is not None and p.min_tokens > p.max_tokens:
        found.append(("min_tokens", f"min_tokens {p.min_tokens} is over max_tokens {p.max_tokens}"))
    if p.allowed_token_ids is not None and not p.allowed_token_ids:
        found.append(("allowed_token_ids", "allowed_token_ids must not be empty"))
    if any(not text for text in (*p.stop, *p.bad_words)):
        found.append(("stop", "stop strings and bad words must not be empty"))
    return found


def _fits(count: int | None) -> bool:
    return count is None or 0 <= count <= MAX_LOGPROBS
