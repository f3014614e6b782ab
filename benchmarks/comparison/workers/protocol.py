"""What every worker speaks: JSON lines, one answer to each request. Python's own library only.

    {"do": "load", "model": …, "kv_tokens": …, "threads": …, "requests": …, "settings": {…}}
        -> {"facts": {…}}
    {"do": "generate", "prompts": [[ids]…], "max_tokens": [n…]}
        -> {"outputs": [[ids]…], "seconds": s}
    {"do": "close"}
        -> {}

An answer may be {"error": TEXT} instead. What libraries print goes to standard error.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}  # of an element


class Generator(Protocol):
    @property
    def facts(self) -> Mapping[str, Any]:
        """`version` and `dtype` of what runs, and `kv_bytes` it was given; None: no budget."""

    def generate(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> list[list[int]]:
        """Greedy continuations of exactly these many tokens, whatever the model says."""

    def close(self) -> None: ...


def serve(load: Callable[[Mapping[str, Any]], Generator]) -> None:
    """Answers until told to close, or until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    generator: Generator | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                generator = load(request)
                answer: Mapping[str, Any] = {"facts": generator.facts}
            elif generator is None:
                answer = {"error": f"{request['do']} before load"}
            elif request["do"] == "generate":
                answer = _generate(generator, request)
            else:
                generator.close()
                answer = {}
        except Exception as error:  # whatever a peer raises: the other side decides
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
        if request["do"] == "close":
            return


def kv_bytes(model: str, tokens: int, element: int) -> int:
    """Bytes of keys and values of so many tokens, `element` bytes a number."""
    config = json.loads((Path(model) / "config.json").read_text())
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    width = config["num_key_value_heads"] * head_dim
    return 2 * int(config["num_hidden_layers"]) * int(width) * tokens * element


def _generate(generator: Generator, request: Mapping[str, Any]) -> Mapping[str, Any]:
    began = time.perf_counter()
    outputs = generator.generate(request["prompts"], request["max_tokens"])
    return {"outputs": outputs, "seconds": time.perf_counter() - began}
