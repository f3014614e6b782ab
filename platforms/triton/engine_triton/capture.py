"""Decode steps as captured programs: a step is then one launch, whatever the model's size.

A program has a fixed number of requests and the whole width of a block table. A step takes the
smallest program that holds it, and is padded; steps that compute prompts run as they are.

    requests of a step:   1  2  3..4  5..8  9..16  17..24  25..32  33..48  49..64 ...
    its program:          1  2  4     8     16     24      32      48      64     ...
"""

import logging
import time
from collections.abc import Callable

from torch import Tensor

from engine.platform import Forward, GraphRunner, MakeInputs, StepInputs, StepLimits
from engine_triton.architecture import Architecture
from engine_triton.device import Device, Recording
from engine_triton.staging import StepBuffers, prompt_of_padding

#: What the driver keeps of one program beside its memory: a guess, for some hundreds of kernels.
PROGRAM_BYTES = 4 << 20
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


class CapturedRunner(GraphRunner):
    """Captures a program of each size before the first request, the largest first, so that the
    others fit the memory that it needed.

    Results are kept in a program's own memory, and the next step of its size overwrites them: on
    the same stream, so after everything that was started on them. `failures` says why a size has no
    program; steps of it take a larger one, or run as they are and are counted in `num_uncaptured`.

    Args:
        agree: what all ranks have captured, given what this one has, by size: their collectives
            have one shape in a step, so a step is padded alike everywhere.
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
        self.num_uncaptured = 0
        self._device = device
        self._limits = limits
        self._architecture = architecture
        self._agree = agree
        self._programs: dict[int, Recording] = {}  # the smallest first
        self._buffers: StepBuffers | None = None

    @property
    def num_compiled(self) -> int:  # type: ignore[override]  # as many as there are now
        return len(self._programs)

    def reserve(self, activations: int) -> int:
        """Programs have memory of their own, where a step's tensors lie as long as they live."""
        most, limits = self.sizes[-1], self._limits
        share = min(1.0, DECODE_SHARE * most / limits.max_tokens)
        inputs = StepBuffers.num_bytes(limits, most)
        return inputs + int(activations * share) + len(self.sizes) * PROGRAM_BYTES

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
        took_s, taken = time.perf_counter() - began, free - self._device.memory()[0]
        log.info(
            "captured %d of %d decode programs, up to %d requests, in %.1f s and %.0f MiB",
            len(self._programs),
            len(self.sizes),
            max(self._programs, default=0),
            took_s,
            taken / 2**20,
        )

    def run(self, forward: Forward, inputs: StepInputs) -> Tensor:
        count = len(inputs.input_ids)
        if inputs.metadata.num_decodes < count or self._buffers is None:
            return forward(inputs)
        size = next((size for size in self._programs if size >= count), None)
        if size is None:
            self.num_uncaptured += 1
            return forward(inputs)
        self._buffers.fill(inputs, size)
        program = self._programs[size]
        program.replay()
        return program.result[:count]

    def close(self) -> None:
        self._programs.clear()
        self.failures.clear()
        self._buffers = None

    def _prompts(self) -> list[int]:
        """Tokens of prompts that bring every kernel of prompts into being: Triton makes another one
        for numbers that 16 divides, and linear layers have kernels for few rows and for many."""
        most = min(self._limits.max_tokens, self._limits.max_model_len)
        wanted = PROMPTS[:2] if self._architecture.interpreted else (*PROMPTS, most)
        return sorted({min(tokens, most) for tokens in wanted})

    def _capture_all(self, forward: Forward) -> dict[int, Recording]:
        """Programs that every rank has, by size."""
        made = {size: self._capture(forward, size) for size in reversed(self.sizes)}
        agreed = self._agree([made[size] is not None for size in self.sizes])
        kept: dict[int, Recording] = {}
        for size, everywhere in zip(self.sizes, agreed, strict=True):
            program = made[size]
            if program is not None and everywhere:
                kept[size] = program
            else:
                self.failures.setdefault(size, "another rank could not capture it")
        return kept

    def _capture(self, forward: Forward, size: int) -> Recording | None:
        """None where it cannot be captured. An error of the model itself is an error here too."""
        assert self._buffers is not None
        inputs = self._buffers.step(size)
        self._buffers.fill(inputs, size)  # compiled here, not in a step
        forward(inputs)  # compiles kernels, which a capture must not
        self._device.synchronize()
        try:
            return self._device.capture(lambda: forward(inputs))
        except RuntimeError as error:
            self.failures[size] = str(error)
            log.warning(
                "no program for decode steps of %d requests, which run kernel by kernel or in a"
                " larger one: %s",
                size,
                error,
            )
            return None
