"""Requests that nobody should send, made from a seed."""

import json
import random
from typing import Any

PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**40,
    0.5,
    -1e308,
    "",
    "a",
    "\x00",
    "\U0001f600" * 9,
    "{{ 7 * 7 }}{% for x in range(9) %}",
    "x" * 5000,
    [],
    [[]],
    [None],
    ["a", 1],
    [1, 2],
    [[1], [2]],
    [255] * 50,
    {},
    {"type": "function"},
    {"type": "json_schema", "json_schema": {}},
    {"1": 1},
    {"a": {"b": [1, {"c": None}]}},
    [{"role": "user", "content": "Hello"}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
    [{"role": "tool", "content": [{"type": "text", "text": "t"}], "tool_call_id": "1"}],
)
FIELDS = (
    *("model", "prompt", "messages", "tokens", "n", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "logprobs", "top_logprobs"),
    *("stream", "stream_options", "echo", "logit_bias", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "min_tokens", "stop_token_ids", "bad_words", "allowed_token_ids"),
    *("prompt_logprobs", "priority", "cache_salt", "request_id", "tools", "tool_choice"),
    *("response_format", "chat_template_kwargs", "add_generation_prompt", "truncate_prompt_tokens"),
    *("continue_final_message", "return_token_ids", "ignore_eos", "user", "documents"),
)


def hostile(choose: random.Random) -> tuple[str, bytes]:
    """A path and a body: a good request with some fields spoilt, and perhaps broken bytes."""
    path = choose.choice(PATHS)
    body: dict[str, Any] = {
        "prompt": "a",
        "messages": [{"role": "user", "content": "Hello"}],
        "tokens": [65],
        "max_tokens": 3,
    }
    for name in choose.sample(FIELDS, choose.randint(0, 4)):
        body[name] = choose.choice(VALUES)
    if body["max_tokens"] is None:
        body["max_tokens"] = 4
    data = json.dumps(body).encode()
    spoil = choose.randint(0, 9)
    if spoil == 0:
        return path, data[: choose.randint(0, len(data))]
    if spoil == 1:
        at = choose.randrange(len(data))
        return path, data[:at] + choose.randbytes(3) + data[at:]
    return path, data
