"""What `engine bench` measures: greedy continuations of random prompts, all of a stated length."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import Protocol

from engine.errors import ConfigError
from engine.facts import EngineFacts
from engine.params import SamplingParams
from engine.text.output import RequestOutput

#: By measure, whose name ends with its unit.
Numbers = Mapping[str, float]


class Model(Protocol):
    """`engine.LLM`, as far as it is used here."""

    @property
    def facts(self) -> EngineFacts: ...

    def generate(
        self, prompts: list[str | Sequence[int]], params: list[SamplingParams]
    ) -> list[RequestOutput]: ...


@dataclass(frozen=True, slots=True)
class Measured:
    workload: str
    described: str
    numbers: Numbers


class Bench:
    """Runs workloads on one model. Every prompt is new, so that no prefix was seen before.

    Args:
        requests: of the workloads with many.
        repeat: how often each measure is taken; the median counts.
        seed: of the prompts.
    """

    def __init__(self, llm: Model, *, requests: int, repeat: int, seed: int) -> None:
        self._llm = llm
        self._requests = requests
        self._repeat = repeat
        self._seed = seed
        self._prompts = count()
        self._room = llm.facts.max_model_len

    def warm_up(self) -> None:
        """What happens only once happens here."""
        self._seconds([self._prompt(8)], [2])

    def single(self) -> Measured:
        """One stream: time to the first token, and tokens a second after it."""
        short, long = self._fit(128, 65), self._fit(1024, 1)
        numbers = {
            "first_token_of_128_s": self._median(lambda: self._seconds([self._prompt(short)], [1])),
            "first_token_of_1024_s": self._median(lambda: self._seconds([self._prompt(long)], [1])),
            "decode_tokens_per_s": self._median(lambda: self._decode(short, 64)),
        }
        described = f"one stream; prompts of {short} and {long} tokens, 64 tokens decoded"
        return Measured("single", described, numbers)

    def mixed(self) -> Measured:
        """Many requests of mixed lengths, all there at once."""
        self._fit(512, 256)
        random_ = random.Random(self._seed)
        lengths = [random_.randint(32, 512) for _ in range(self._requests)]
        outputs = [random_.randint(16, 256) for _ in range(self._requests)]
        seconds = self._median(lambda: self._seconds(list(map(self._prompt, lengths)), outputs))
        numbers = {
            "seconds_s": seconds,
            "output_tokens_per_s": sum(outputs) / seconds,
            "total_tokens_per_s": (sum(outputs) + sum(lengths)) / seconds,
        }
        described = f"{self._requests} requests; prompts of 32 to 512 tokens, outputs of 16 to 256"
        return Measured("mixed", described, numbers)

    def prefix(self) -> Measured:
        """Requests that begin alike."""
        shared, own, output = self._fit(1024, 48), 32, 16

        def measure() -> float:
            start = self._prompt(shared)
            prompts = [start + self._prompt(own) for _ in range(self._requests)]
            return self._seconds(prompts, [output] * self._requests)

        seconds = self._median(measure)
        tokens = self._requests * (shared + own + output)
        numbers = {"seconds_s": seconds, "total_tokens_per_s": tokens / seconds}
        described = (
            f"{self._requests} requests; {shared} equal prompt tokens and {own} own, {output}"
            " output tokens"
        )
        return Measured("prefix", described, numbers)

    def _decode(self, length: int, tokens: int) -> float:
        first = self._seconds([self._prompt(length)], [1])
        whole = self._seconds([self._prompt(length)], [tokens + 1])
        return tokens / max(whole - first, 1e-9)

    def _seconds(self, prompts: Sequence[list[int]], outputs: Sequence[int]) -> float:
        params = [
            SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
            for tokens in outputs
        ]
        began = time.perf_counter()
        found = self._llm.generate([*prompts], params)
        seconds = time.perf_counter() - began
        made = [len(one.outputs[0].token_ids) for one in found]
        assert made == list(outputs), f"asked for {outputs} tokens, got {made}"
        return seconds

    def _median(self, measure: Callable[[], float]) -> float:
        return median(measure() for _ in range(self._repeat))

    def _prompt(self, length: int) -> list[int]:
        random_ = random.Random(f"{self._seed} {next(self._prompts)}")
        return [random_.randrange(self._llm.facts.model.vocab_size) for _ in range(length)]

    def _fit(self, prompt: int, output: int) -> int:
        """The prompt's length; refuses a context that is too short for it."""
        if prompt + output > self._room:
            raise ConfigError(
                f"a workload needs {prompt + output} tokens of context, but the model has"
                f" {self._room}; choose other workloads or another model"
            )
        return prompt


WORKLOADS: Mapping[str, Callable[[Bench], Measured]] = {
    "single": Bench.single,
    "mixed": Bench.mixed,
    "prefix": Bench.prefix,
}
