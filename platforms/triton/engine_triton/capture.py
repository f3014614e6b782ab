"""Decode steps as captured programs: a step is then one launch, whatever the model's size.

A program has a fixed number of requests and the whole width of a block table. A step takes the
smallest program that holds it, and is padded; steps that compute prompts run as they are. Small
programs end with the logits of their rows, so that nothing but the choice of tokens is left.

    requests of a step:   1  2  3..4  5..8  9..16  17..24  25..32  33..48  49..64 ...
    its program:          1  2  4     8     16     24      32      48      64     ...
                          |------- with logits, as LOGITS_BYTES allow --------|
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from engine.platform import Forward, GraphRunner, Logits, MakeInputs, StepInputs, StepLimits
from engine_triton.architecture import Architecture
from engine_triton.device import Device, Recording
from engine_triton.staging import StepBuffers, prompt_of_padding

#: What the driver keeps of one program beside its memory: a guess, for some hundreds of kernels.
PROGRAM_BYTES = 4 << 20
#: Of logits that programs keep, all together. Each keeps its own: 7 programs, up to 32 requests, of
#: a vocabulary of 150,000.
LOGITS_BYTES = 64 << 20
LOGIT_BYTES = 4
#: A decode step may need this many times what as many tokens of a prompt do: the parts of split
#: contexts. A guess; `warm_up` logs what was really taken.
DECODE_SHARE = 2.0
#: Rows between which linear layers change their kernels, each divided by 16 and not.
PROMPTS = (15, 16, 17, 48, 65, 128)
#: Padded steps between these sizes are half as large again; up to them, twice as large.
HALVES_FROM = 16

log = logging.getLogger(__name__)


def decode_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4, 8, 16, 24, 32, 48, 64, 96 … and `most`."""
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        if size >= HALVES_FROM and size + size // 2 < most:
            sizes.append(size + size // 2)
        size *= 2
    return (*sizes, most)


@dataclass(frozen=True, slots=True)
class Program:
    """`logits` [P, V] are those of `recording.result` [P, hidden]; None: they are not in it."""

    recording: Recording
    logits: Tensor | None


class CapturedRunner(GraphRunner):
    """Captures a program of each size before the first request, the largest first, so that the
    others fit the memory that it needed.

    Results are kept in a program's own memory, and the next step of its size overwrites them: on
    the same stream, so after everything that was started on them. `failures` says why a size has no
    program; steps of it take a larger one, or run as they are and are counted in `num_uncaptured`.
    `without_logits` says why no program has logits that could have.

    Args:
        agree: what all ranks have captured, given what this one has, by size; first of programs
            with logits, then of those without. Their collectives have one shape in a step, so a
            step is padded alike everywhere, and has the same ones.
    """

    def __init__(
        self,
        device: Device,
        limits: StepLimits,
        architecture: Architecture,
        agree: Callable[[list[bool]], list[bool]] = lambda captured: captured,
    ) -> None:
        self.sizes = decode_sizes(min(limits.max_requests, limits.max_tokens))
        self.failures: dict[int, str] = {}
        self.without_logits: str | None = None
        self.num_uncaptured = 0
        self._device = device
        self._limits = limits
        self._architecture = architecture
        self._agree = agree
        self._programs: dict[int, Program] = {}  # the smallest first
        self._buffers: StepBuffers | None = None
        self._logits: Logits | None = None
        self._logits_bytes: dict[int, int] = {}  # of the programs that are to have them
        self._last: tuple[Tensor, Tensor] | None = None  # hidden states and logits of the last run
        self._taken: tuple[float, int] = (0.0, 0)  # seconds and bytes, by the warm-up

    @property
    def num_compiled(self) -> int:  # type: ignore[override]  # as many as there are now
        return len(self._programs)

    def will_project(self, logits: Logits, vocab_size: int) -> None:
        self._logits, self._logits_bytes, left = logits, {}, LOGITS_BYTES
        for size in self.sizes:
            left -= size * vocab_size * LOGIT_BYTES
            if left >= 0:
                self._logits_bytes[size] = size * vocab_size * LOGIT_BYTES

    def reserve(self, activations: int) -> int:
        """Programs have memory of their own, where a step's tensors lie as long as they live."""
        most, limits = self.sizes[-1], self._limits
        share = min(1.0, DECODE_SHARE * most / limits.max_tokens)
        kept = StepBuffers.num_bytes(limits, most) + sum(self._logits_bytes.values())
        return kept + int(activations * share) + len(self.sizes) * PROGRAM_BYTES

    def warm_up(self, forward: Forward, make_inputs: MakeInputs) -> None:
        self.close()
        for tokens in self._prompts():
            forward(prompt_of_padding(tokens, self._limits.block_size, self._device.name))
        self._device.synchronize()
        began, (free, _) = time.perf_counter(), self._device.memory()
        self._buffers = StepBuffers(
            self._limits, self.sizes[-1], self._device.name, self._architecture
        )
        self._programs = self._capture_all(forward)
        self._taken = time.perf_counter() - began, free - self._device.memory()[0]
        log.info("%s", self.report())

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        count, self._last = len(inputs.input_ids), None
        if inputs.metadata.num_decodes < count or self._buffers is None:
            return forward(inputs)
        size = next((size for size in self._programs if size >= count), None)
        if size is None:
            self.num_uncaptured += 1
            return forward(inputs)
        self._buffers.fill(inputs, size)
        program = self._programs[size]
        program.recording.replay()
        hidden = program.recording.result[:count]
        if program.logits is not None:
            self._last = hidden, program.logits[:count]
        return hidden

    def project_all(self, logits: Logits, hidden: Tensor) -> Tensor:
        if self._last is not None and self._last[0] is hidden:
            return self._last[1]
        return logits(hidden)

    def report(self) -> str:
        if self._buffers is None:
            return f"decode programs for {_listed(self.sizes)} requests, when the model is loaded"
        took_s, taken = self._taken
        captured = f"{len(self._programs)} of {len(self.sizes)} captured"
        lines = [
            f"decode programs: {captured} in {took_s:.1f} s and {taken / 2**20:,.1f} MiB,"
            f" for {_listed(self._programs)} requests"
        ]
        with_logits = [size for size, one in self._programs.items() if one.logits is not None]
        lines.append(f"with the output layer for {_listed(with_logits)}")
        if self.without_logits:
            lines.append(f"the output layer runs beside them: {self.without_logits}")
        lines += [f"no program for {size}: {why}" for size, why in sorted(self.failures.items())]
        return "\n  ".join(lines)

    def close(self) -> None:
        self._programs.clear()
        self.failures.clear()
        self.without_logits = self._last = self._buffers = None

    def _prompts(self) -> list[int]:
        """Tokens of prompts that bring every kernel of prompts into being: Triton makes another one
        for numbers that 16 divides, and linear layers have kernels for few rows and for many."""
        most = min(self._limits.max_tokens, self._limits.max_model_len)
        wanted = PROMPTS[:1] if self._architecture.interpreted else (*PROMPTS, most)
        return sorted({min(tokens, most) for tokens in wanted})

    def _capture_all(self, forward: Forward) -> dict[int, Program]:
        """Programs that every rank has, by size."""
        made = {size: self._capture(forward, size) for size in reversed(self.sizes)}
        kinds = [_kind(made[size]) for size in self.sizes]
        agreed = self._agree(
            [kind == "whole" for kind in kinds] + [kind == "part" for kind in kinds]
        )
        kept: dict[int, Program] = {}
        for place, size in enumerate(self.sizes):
            program = made[size]
            if program is not None and (agreed[place] or agreed[place + len(kinds)]):
                kept[size] = program
            else:
                self.failures.setdefault(size, "another rank could not capture it")
        return kept

    def _capture(self, forward: Forward, size: int) -> Program | None:
        """None where it cannot be captured. An error of the model itself is an error here too."""
        assert self._buffers is not None
        inputs = self._buffers.step(size)
        self._buffers.fill(inputs, size)  # compiled here, not in a step
        if not self._architecture.interpreted:
            hidden = forward(inputs)  # compiles kernels, which a capture must not
            if self._logits is not None:
                self._logits(hidden)
        self._device.synchronize()
        try:
            return self._record(forward, inputs, size)
        except RuntimeError as error:
            self.failures[size] = str(error)
            log.warning(
                "no program for decode steps of %d requests, which run kernel by kernel or in a"
                " larger one: %s",
                size,
                error,
            )
            return None

    def _record(self, forward: Forward, inputs: StepInputs, size: int) -> Program:
        """
        Raises:
            RuntimeError: it cannot be captured, also without the output layer.
        """
        project = self._logits if size in self._logits_bytes else None
        if project is not None and self.without_logits is None:
            made: list[Tensor] = []

            def work() -> Tensor:
                hidden = forward(inputs)
                made.append(project(hidden))
                return hidden

            try:
                return Program(self._device.capture(work), made[0])
            except RuntimeError as error:
                self.without_logits = str(error)
        return Program(self._device.capture(lambda: forward(inputs)), None)


def _kind(program: Program | None) -> str:
    if program is None:
        return "none"
    return "part" if program.logits is None else "whole"


def _listed(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes)) or "no"
