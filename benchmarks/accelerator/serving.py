"""Whole models, end to end: one stream, the first token, and many requests at once."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from statistics import median

from accelerator import ceilings
from accelerator.anatomy import anatomy
from accelerator.floors import BF16, FP8, Floors
from accelerator.job import Job, Measure
from accelerator.models import SHAPES, make
from accelerator.participants import PARTICIPANTS, Ours, Participant
from accelerator.records import OURS, Fact, Record, Value
from accelerator.workloads import Workload, nano, uniform

PRECISIONS = {one.name: one for one in (BF16, FP8)}
#: Of a workload that an anchor may be too slow for.
FEW = 64


def measures(job: Job) -> list[Measure]:
    serving = Serving(job)
    vocab = serving.floors.shape.vocab_size
    found = [
        Measure("start", serving.start, estimate_s=5),
        Measure("one stream", serving.one_stream, estimate_s=3),
        Measure("first token", serving.first_token, estimate_s=3),
        Measure("few requests", partial(serving.workload, _first(serving.nano, FEW)), estimate_s=4),
    ]
    if serving.who != "transformers":
        equal = job.pick(((512, 128, 128), (128, 1000, 1000)), ((4, 12, 12),))
        loads = [serving.nano] + [
            uniform(f"{tokens_in}/{tokens_out}", count, tokens_in, tokens_out, vocab)
            for count, tokens_in, tokens_out in equal
        ]
        found += [
            Measure(one.name, partial(serving.workload, one), estimate_s=serving.estimate_s(one))
            for one in loads
        ]
    if serving.who == OURS:
        found[3:3] = [
            Measure(f"anatomy of a step, {count}", partial(serving.anatomy, count), estimate_s=4)
            for count in job.pick((1, 256), (2,))
        ]
    return found


class Serving:
    """One participant with one model. It is started by the first measure that needs it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model, self.who = str(job.arguments["model"]), str(job.arguments["who"])
        precision = PRECISIONS[str(job.arguments["precision"])]
        self.label = f"{self.model} {precision.name}"
        self.floors = Floors(SHAPES[self.model], ceilings.of(job.facts), precision)
        self._number = 0  # of prompts so far
        self._refused: Exception | None = None

    def start(self) -> Iterator[Record]:
        began = time.perf_counter()
        facts = self.participant.facts
        self._run(16, 4)  # what is lazy happens here
        yield Fact(f"{self.label}, {self.who}, ready after, s", time.perf_counter() - began)
        for name, value in facts.items():
            yield Fact(f"{self.label}, {self.who}, {name}", value)

    def one_stream(self) -> Iterator[Record]:
        """Milliseconds a token after the first."""
        prompt, output = self.job.pick((128, 129), (16, 9))
        firsts = [self._run(prompt, 1) for _ in range(3)]
        wholes = [self._run(prompt, output) for _ in range(3)]
        a_token = (median(wholes) - median(firsts)) / (output - 1)
        floor = self.floors.decode_step_s(1, prompt + output / 2)
        yield Value(
            f"{self.label}, one stream, a token", self.who, 1e3 * a_token, "ms", floor=1e3 * floor
        )

    def first_token(self) -> Iterator[Record]:
        for tokens in self.job.pick((128, 1024, 4096, 8192), (32,)):
            seconds = median(self._run(tokens, 1) for _ in range(3))
            name = f"{self.label}, first token of {tokens}"
            floor = 1e3 * self.floors.first_token_s(tokens)
            yield Value(name, self.who, 1e3 * seconds, "ms", floor=floor)

    def workload(self, workload: Workload) -> Iterator[Record]:
        """Output tokens a second."""
        seconds = self._seconds(workload)
        yield Value(
            f"{self.label}, {workload.name}",
            self.who,
            workload.output_tokens / seconds,
            "tokens/s",
            higher_is_better=True,
            floor=self.floors.output_rate(workload),
        )

    def anatomy(self, streams: int) -> Iterator[Record]:
        """Kernels of a decode step, and how long the device is busy with them."""
        participant = self.participant
        assert isinstance(participant, Ours)
        length, vocab = self.job.pick(512, 32), self.floors.shape.vocab_size
        short = uniform(f"anatomy {streams}", streams, length, 9, vocab)
        long = replace(short, outputs=(41,) * streams)
        yield from anatomy(f"{self.label}, {streams} streams", participant.run, short, long)

    def estimate_s(self, workload: Workload) -> float:
        """Of a participant that reaches half of the floor."""
        return 2 * self.floors.workload_s(workload)

    @cached_property
    def nano(self) -> Workload:
        if self.job.full:
            return nano()
        return nano(sequences=6, longest=24, vocab_size=self.floors.shape.vocab_size)

    @property
    def participant(self) -> Participant:
        """
        Raises:
            RuntimeError: it could not be started; the first time, whatever it raised.
        """
        if self._refused is not None:
            raise RuntimeError(f"not started: {self._refused}")
        try:
            return self._started
        except Exception as error:
            self._refused = error
            raise

    @cached_property
    def _started(self) -> Participant:
        assert self.job.models is not None
        folder = make(self.model, self.job.models, self.job.device)
        return PARTICIPANTS[self.who](self.job, folder, self.floors.precision.name)

    def _run(self, prompt: int, output: int) -> float:
        """Seconds of one request, whose prompt nobody has seen."""
        self._number += 1
        name = f"{prompt} {output} {self._number}"
        return self._seconds(uniform(name, 1, prompt, output, self.floors.shape.vocab_size))

    def _seconds(self, workload: Workload) -> float:
        participant = self.participant
        began = time.perf_counter()
        participant.run(workload)
        return time.perf_counter() - began


def _first(workload: Workload, count: int) -> Workload:
    """The first requests of a workload. Their prompts are turned round: whoever runs all of them
    later must not find these in a prefix cache."""
    return replace(
        workload,
        name=f"{workload.name}, {min(count, len(workload.prompts))} requests",
        prompts=tuple(prompt[::-1] for prompt in workload.prompts[:count]),
        outputs=workload.outputs[:count],
    )
