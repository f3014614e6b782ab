"""The least time that a device can take, from shapes and from its measured ceilings.

A matrix is read once a step, or multiplied at the rate of the matrix units, whichever takes longer;
the KV cache is read once; everything else is free. Attention over a prompt is causal.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from accelerator.models import ModelShape
from accelerator.workloads import Workload

#: Of the device's memory, what weights and KV may take, as the engine's own default has it.
USABLE = 0.9
MOST_SEQUENCES = 1024


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Measured on the device, before anything else."""

    bytes_per_s: float  # the higher of reading and copying
    bf16_flops: float
    fp8_flops: float | None  # None: it multiplies no fp8
    memory_bytes: float


@dataclass(frozen=True)
class Precision:
    """Bytes of a number; activations are bfloat16, the output layer too."""

    name: str = "bf16"
    weight_bytes: float = 2.0  # of the layers' matrices
    kv_bytes: float = 2.0

    @property
    def multiplies_fp8(self) -> bool:
        return self.name.startswith("fp8")


BF16 = Precision()
FP8 = Precision("fp8", 1.0, 1.0)


@dataclass(frozen=True)
class Stretch:
    """Decode steps of the same sequences. `kv_tokens` is what all of the steps read together."""

    steps: int
    sequences: int
    kv_tokens: int


@dataclass
class _Running:
    kept: int  # tokens in the cache
    to_come: int  # tokens


@dataclass(frozen=True)
class Floors:
    shape: ModelShape
    ceilings: Ceilings
    precision: Precision = BF16

    def decode_step_s(self, sequences: int, kv_tokens: float) -> float:
        """One token of each of `sequences`, which keep `kv_tokens` together."""
        read = kv_tokens * self.kv_bytes_per_token / self.ceilings.bytes_per_s
        return self._matrices_s(sequences) + read

    def first_token_s(self, tokens: int) -> float:
        """Of one prompt that is alone."""
        return max(self._weights_s, self.prefill_s(tokens))

    def prefill_s(self, tokens: int) -> float:
        """What a prompt adds to a step that is bound by arithmetic."""
        shape = self.shape
        scores = 2 * shape.num_hidden_layers * shape.query_width * tokens**2  # half of 4·L·H·D·n²
        return (
            2 * shape.layer_weights * tokens / self._rate
            + (2 * shape.head_weights + scores) / self.ceilings.bf16_flops
        )

    def workload_s(self, workload: Workload) -> float:
        """All requests there at once; as many run together as their KV has room for."""
        seconds = sum(self.prefill_s(len(prompt)) for prompt in workload.prompts)
        for one in self._stretches(workload):
            seconds += one.steps * self._matrices_s(one.sequences)
            seconds += one.kv_tokens * self.kv_bytes_per_token / self.ceilings.bytes_per_s
        return seconds

    def output_rate(self, workload: Workload) -> float:
        """Output tokens a second."""
        return sum(workload.outputs) / self.workload_s(workload)

    @property
    def kv_bytes_per_token(self) -> float:
        return self.shape.kv_numbers * self.precision.kv_bytes

    @property
    def weight_bytes(self) -> float:
        """That a step reads."""
        return self.shape.layer_weights * self.precision.weight_bytes + 2 * self.shape.head_weights

    @property
    def room_tokens(self) -> int:
        """Of KV, beside the weights."""
        stored = self.weight_bytes
        if not self.shape.tie_word_embeddings:
            stored += 2 * self.shape.head_weights
        free = USABLE * self.ceilings.memory_bytes - stored
        return max(0, int(free / self.kv_bytes_per_token))

    def _stretches(self, workload: Workload) -> Iterator[Stretch]:
        """All decode steps. A prompt's own step brings its first token, and is none of them."""
        waiting = list(zip(map(len, workload.prompts), workload.outputs, strict=True))[::-1]
        running: list[_Running] = []
        held = 0  # tokens that those who run will keep at their ends
        while waiting or running:
            while waiting and len(running) < MOST_SEQUENCES:
                prompt, output = waiting[-1]
                if running and held + prompt + output > self.room_tokens:
                    break
                waiting.pop()
                held += prompt + output
                running.append(_Running(prompt, output - 1))
            steps, count = min(one.to_come for one in running), len(running)
            kept = sum(one.kept for one in running)
            yield Stretch(steps, count, steps * kept + count * steps * (steps + 1) // 2)
            for one in running:
                one.kept += steps
                one.to_come -= steps
            held -= sum(one.kept + 1 for one in running if not one.to_come)
            running = [one for one in running if one.to_come]

    def _matrices_s(self, tokens: int) -> float:
        shape, ceilings = self.shape, self.ceilings
        layers = max(
            shape.layer_weights * self.precision.weight_bytes / ceilings.bytes_per_s,
            2 * tokens * shape.layer_weights / self._rate,
        )
        head = 2 * shape.head_weights  # bytes, and operations a token
        return layers + max(head / ceilings.bytes_per_s, tokens * head / ceilings.bf16_flops)

    @property
    def _weights_s(self) -> float:
        return self.weight_bytes / self.ceilings.bytes_per_s

    @property
    def _rate(self) -> float:
        """Operations a second of the layers' matrices."""
        if self.precision.multiplies_fp8 and self.ceilings.fp8_flops:
            return self.ceilings.fp8_flops
        return self.ceilings.bf16_flops
