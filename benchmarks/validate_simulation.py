"""How far the time model is off: the real engine and its prediction, on the same work.

    python benchmarks/validate_simulation.py --shape smollm-135m --json FILE [--only NAME …]

Rows are step times of the real engine loop on this machine's CPU (median of several steps), times
to the first token of prompts alone, and a short trace in real time against its simulation. With
`--write-errors` the errors go where predictions for this processor quote them. A long run can be
made in pieces (`--only`) that add to one FILE.
"""

import argparse
import json
import statistics
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from machine import describe

from engine.assemble import Engine, assemble
from engine.batch import Batch
from engine.cli import random_models
from engine.cli.simulate import make_setup
from engine.params import SamplingParams
from engine.platform import Pending, Runner
from engine.request import Submission
from engine.simulate.cost import TimeModel
from engine.simulate.plan import make_plan, prefill_seconds
from engine.simulate.replica import simulate_replica
from engine.simulate.report import percentiles
from engine.simulate.target import Target, find_target
from engine.simulate.trace import Trace

#: Requests and tokens of context of decode steps; tokens of prompts.
DECODES = ((1, 64), (1, 512), (1, 1536), (4, 256), (8, 128), (16, 64), (16, 256), (32, 32))
PROMPTS = (64, 256, 512, 1024)
STEPS = 12
ERRORS = Path("platforms/cpu/engine_cpu/validation.json")


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    predicted: float
    measured: float
    unit: str = "ms"

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="smollm-135m", choices=sorted(random_models.SHAPES))
    parser.add_argument("--only", action="append", choices=("decode", "prompt", "trace"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write-errors", action="store_true")
    arguments = parser.parse_args()
    folder = random_models.folder(arguments.shape, "bfloat16")
    settings = {
        "model": str(folder),
        "device": "cpu",
        "num_blocks": 400,
        "max_requests": 64,
        "step_target_s": 0.0,
    }
    target = find_target(settings)
    engine = assemble(settings)
    rows = []
    try:
        for row in _rows(engine, target, arguments.only or ("decode", "prompt", "trace")):
            rows.append(row)
            print(_line(row), flush=True)
    finally:
        engine.close()
    plan = make_plan(target)
    print(f"\nledger predicted\n{plan.ledger}\n\nledger of the engine\n{engine.facts.ledger}")
    rows = _with_earlier(rows, arguments.json, arguments.shape)
    errors = sorted(abs(row.error) for row in rows)
    median, worst = statistics.median(errors), errors[-1]
    print(f"\n{len(rows)} rows: median error {median:.1%}, worst {worst:.1%}")
    machine = describe()
    result = {
        "shape": arguments.shape,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "profile": asdict(target.profile),
        "rows": [{**asdict(row), "error": row.error} for row in rows],
        "median_error": median,
        "worst_error": worst,
    }
    if arguments.json:
        _write(arguments.json, result)
    if arguments.write_errors:
        found = {"processor": machine["cpu"], "models": arguments.shape}
        errors = {"median_error": round(median, 3), "worst_error": round(worst, 3)}
        _write(ERRORS, {**found, **errors})


def _with_earlier(rows: list[Row], path: Path | None, shape: str) -> list[Row]:
    """And what earlier pieces of the same run measured."""
    if path is None or not path.exists():
        return rows
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if earlier["shape"] != shape:
        raise SystemExit(f"{path} is of {earlier['shape']}; give another file for {shape}")
    names = [one.name for one in fields(Row)]
    kept = [Row(**{name: one[name] for name in names}) for one in earlier["rows"]]
    new = {row.what for row in rows}
    return [*(row for row in kept if row.what not in new), *rows]


def _write(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _line(row: Row) -> str:
    error = f"{row.error:+.1%}"
    return f"{row.what:38}{row.predicted:10.2f} |{row.measured:10.2f} {row.unit:3} |{error:>8}"


def _rows(engine: Engine, target: Target, wanted: tuple[str, ...]) -> Iterator[Row]:
    model = target.time_model()
    print(f"{'':38}{'predicted':>10} |{'measured':>10}     |   error")
    _prompt(engine, 32)  # the first one is slow
    if "decode" in wanted:
        for requests, context in DECODES:
            yield _decode(engine, model, requests, context)
    if "prompt" in wanted:
        for tokens in PROMPTS:
            predicted = prefill_seconds(model, tokens, target.config.max_batch_tokens)
            measured = statistics.median(_prompt(engine, tokens) for _ in range(3))
            yield Row(f"prompt of {tokens} tokens", predicted * 1e3, measured * 1e3)
    if "trace" in wanted:
        yield from _trace(engine, target)


def _submit(engine: Engine, name: str, inputs: int, outputs: int) -> None:
    """A prompt that shares nothing with another one."""
    base = abs(hash(name))
    vocabulary = engine.facts.model.vocab_size
    prompt = tuple((base + 7 * i * i) % vocabulary for i in range(inputs))
    params = SamplingParams(max_tokens=outputs, ignore_eos=True, temperature=0.0)
    engine.loop.submit(Submission(name, prompt, params))


def _prompt(engine: Engine, tokens: int) -> float:
    """Seconds from its arrival to its only token."""
    _submit(engine, f"prompt {time.perf_counter()}", tokens, 1)
    began = time.perf_counter()
    engine.loop.run_until_idle()
    return time.perf_counter() - began


def _decode(engine: Engine, model: TimeModel, requests: int, context: int) -> Row:
    for i in range(requests):
        _submit(engine, f"decode {time.perf_counter()} {i}", context, STEPS + 2)
    loop, steps, predicted = engine.loop, [], []
    while not loop.idle:
        began = time.perf_counter()
        deltas = loop.step()
        took = time.perf_counter() - began
        running = loop.scheduler.running
        if len(deltas) == requests == len(running) and all(len(r.output) > 1 for r in running):
            steps.append(took)
            contexts = [one.computed for one in running]
            predicted.append(float(model.decode_seconds(contexts, 1)[0]))
    what = f"decode of {requests} at {context} tokens"
    return Row(what, statistics.median(predicted) * 1e3, statistics.median(steps) * 1e3)


def _trace(engine: Engine, target: Target) -> Iterator[Row]:
    """Some requests of mixed lengths, in real time and in simulated time."""
    lengths = [(60 + 53 * i % 400, 8 + 17 * i % 40) for i in range(16)]
    alone = sum(a for a, _ in lengths) / 300  # seconds: the device is busy for about 60 %
    arrivals = [i * alone / len(lengths) for i in range(len(lengths))]
    trace = Trace(
        array("d", arrivals),
        array("l", (inputs for inputs, _ in lengths)),
        array("l", (outputs for _, outputs in lengths)),
    )
    quiet = replace(target, config=replace(target.config, num_blocks=400))
    outcome = simulate_replica(make_setup(quiet, trace), trace)
    real = _in_real_time(engine, target.time_model(), trace)
    yield Row("trace: all steps together", real.predicted_s * 1e3, real.measured_s * 1e3)
    for what, predicted, measured in (
        ("time to first token", outcome.first_token, real.first),
        ("latency", outcome.finished, real.last),
    ):
        ours = percentiles([end - at for end, at in zip(predicted, arrivals, strict=True)])
        theirs = percentiles([measured[i] - arrivals[i] for i in range(len(trace))])
        for percent in (50, 90):
            yield Row(f"trace: {what} p{percent}", ours[percent] * 1e3, theirs[percent] * 1e3)


@dataclass(slots=True)
class _Replayed:
    """When each request got its first and its last token; seconds of all steps together."""

    first: dict[int, float] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)
    predicted_s: float = 0.0
    measured_s: float = 0.0


class _Predicting(Runner):
    """Runs each batch, and adds up what the time model says of it."""

    def __init__(self, runner: Runner, model: TimeModel) -> None:
        self._runner = runner
        self._model = model
        self.predicted_s = 0.0

    def load(self) -> int:
        raise AssertionError("it is loaded")

    def execute(self, batch: Batch) -> Pending:
        self.predicted_s += self._model.seconds(self._model.work(batch))
        return self._runner.execute(batch)

    def reset(self) -> None:
        self._runner.reset()


def _in_real_time(engine: Engine, model: TimeModel, trace: Trace) -> _Replayed:
    loop, began, sent = engine.loop, time.perf_counter(), 0
    runner = loop.runner
    loop.runner = predicting = _Predicting(runner, model)
    found = _Replayed()
    while sent < len(trace) or not loop.idle:
        while sent < len(trace) and trace.arrivals[sent] <= time.perf_counter() - began:
            _submit(engine, str(sent), trace.inputs[sent], trace.outputs[sent])
            sent += 1
        if loop.idle:
            time.sleep(max(0.0, trace.arrivals[sent] - (time.perf_counter() - began)))
            continue
        started = time.perf_counter()
        deltas = loop.step()
        now = time.perf_counter()
        found.measured_s += now - started
        for delta in deltas:
            found.first.setdefault(int(delta.id), now - began)
            found.last[int(delta.id)] = now - began
    loop.runner, found.predicted_s = runner, predicting.predicted_s
    return found


if __name__ == "__main__":
    main()
