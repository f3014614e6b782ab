"""Ours, transformers, llama.cpp, OpenVINO GenAI and vLLM on this machine's CPU, interleaved.

Every peer gets an environment of its own, made once under the cache folder from pinned lists; the
same weights, prompts, numbers of tokens and KV budget; and the machine to itself while it is
measured. See README.md.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import machine
import shapes
from comparison import serving
from comparison.cases import CASES, Size, mixture, prompt
from comparison.processes import PeerError
from comparison.results import Measure, Results, agree, as_json, tell
from comparison.roster import Ceilings, Gate, Roster
from comparison.variants import VARIANTS, Job, Peers, Variant
from rich.console import Console

RESULTS = Path(__file__).parent / "results"
CACHE = Path.home() / ".cache" / "engine-benchmarks"
USUAL = (
    "engine-bf16",
    "transformers-bf16",
    "llama.cpp-bf16",
    "llama.cpp-q8_0",
    "llama.cpp-q4_0",
    "openvino-bf16",
    "openvino-int8",
    "vllm-bf16",
)
OTHERS = ("ready", "memory", "http")
REFERENCE = VARIANTS["transformers-fp32"]


class Run:
    """All workloads of one shape, round by round."""

    def __init__(self, arguments: argparse.Namespace, shape: str, console: Console) -> None:
        self.arguments, self.console, self.results = arguments, console, Results()
        self.shape = shapes.SHAPES[shape]
        self.size = Size(self.shape.vocab_size, arguments.requests, arguments.output_scale)
        self.gate = Gate(arguments.while_measuring)
        self.peers = Peers(arguments.cache)
        self.job = Job(
            model=shapes.folder(shape, "bfloat16"),
            shape=self.shape,
            kv_tokens=arguments.kv_tokens,
            requests=arguments.requests,
            threads=len(os.sched_getaffinity(0)),
        )
        self.roster = Roster(self.peers, self.job, self.gate)
        self.ceilings = Ceilings(arguments.cache, self.job.threads, self.gate)
        self.out: dict[str, str] = {}  # who does not take part any more, and why

    def rounds(self) -> None:
        try:
            if self.arguments.check:
                self._check()
            for workload in self.arguments.workload:
                for number in range(self.arguments.rounds):
                    self._round(workload, number)
        finally:
            self.results.facts.update(self.roster.facts)
            self.roster.close()
            self.ceilings.close()

    def _round(self, workload: str, number: int) -> None:
        """Everyone once, each round beginning with another one."""
        chosen = [VARIANTS[name] for name in self.arguments.who]
        turn = number % len(chosen)
        ceilings = self.results.ceilings.setdefault(workload, [])
        ceilings.append(self.ceilings.measure())
        for variant in chosen[turn:] + chosen[:turn]:
            if variant.name in self.out:
                self.results.refuse("everything", variant.name, self.out[variant.name])
            else:
                self._measure(workload, number, variant)
        ceilings.append(self.ceilings.measure())

    def _measure(self, workload: str, number: int, variant: Variant) -> None:
        draw = random.Random(f"{self.arguments.seed} {workload} {number}")
        try:
            if workload in CASES:
                case = CASES[workload]
                with self.roster.on(variant) as on:
                    value = case.measure(on.ask, draw, self.size)
                self._add(Measure(workload, case.unit, case.higher_is_better), variant, value)
            else:
                MORE[workload](self, draw, variant)
        except PeerError as error:
            self.console.print(f"{workload}, {variant.name}: {error}", markup=False)
            self.results.refuse(workload, variant.name, str(error))

    def ready(self, draw: random.Random, variant: Variant) -> None:
        self._add(Measure("ready", "s", False), variant, self.roster.ready(variant))

    def memory(self, draw: random.Random, variant: Variant) -> None:
        memory, facts = self.roster.memory(variant, *mixture(draw, self.size.requests, self.size))
        budget = facts["kv_bytes"] or 0
        assert isinstance(budget, int)
        measure = Measure("memory", "MiB, peak RSS less the KV budget", False)
        self._add(measure, variant, (memory.rss - budget) / 2**20)
        measure = Measure("memory", "MiB, peak with shared pages once, less the KV budget", False)
        self._add(measure, variant, (memory.pss - budget) / 2**20)

    def http(self, draw: random.Random, variant: Variant) -> None:
        seed = str(draw.random())
        for measure, value in serving.measure(
            variant, self.job, self.peers, self.gate, seed, self.size
        ):
            self._add(measure, variant, value)

    def _add(self, measure: Measure, variant: Variant, value: float) -> None:
        self.results.add(measure, variant.name, value)
        told = f"{measure.workload:8} {variant.name:18} {value:10.4g} {measure.unit}"
        self.console.print(told, markup=False, highlight=False)

    def _check(self) -> None:
        """Whether everyone computes the same model: greedy tokens beside the reference's."""
        draw = random.Random(self.arguments.seed)
        prompts = [prompt(draw, 24, self.size) for _ in range(8)]
        counts = [8] * len(prompts)
        try:
            reference = self._reference(prompts, counts)
        except PeerError as error:
            self.results.refuse("agreement", "everyone", f"no reference: {error}")
            return
        for name in self.arguments.who:
            try:
                with self.roster.on(VARIANTS[name]) as on:
                    on.ask(prompts, counts)
                agreement = agree(on.outputs, reference)
                self.results.agreement[name] = agreement
                self.console.print(f"{name} agrees with the reference: {agreement}")
            except PeerError as error:
                self.console.print(f"{name} takes no part: {error}", markup=False)
                self.out[name] = str(error)

    def _reference(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> list[list[int]]:
        """Of transformers in float32; kept beside the model."""
        path = self.arguments.cache / "models" / f"{self.job.model.name}-reference.json"
        question = {"prompts": prompts, "counts": counts}
        if path.exists() and (kept := json.loads(path.read_text()))["question"] == question:
            return list(kept["outputs"])
        with self.roster.on(REFERENCE) as on:
            on.ask(prompts, counts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"question": question, "outputs": on.outputs}))
        return on.outputs


MORE: dict[str, Callable[[Run, random.Random, Variant], None]] = {
    "ready": Run.ready,
    "memory": Run.memory,
    "http": Run.http,
}


def main() -> int:
    arguments = _parse()
    # Asked to end, it ends those that it started too: some of them are stopped, and would stay.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    described = machine.describe()
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(", ".join(f"{name} {value}" for name, value in described.items()))
    told = {}
    for shape in arguments.shape:
        run = Run(arguments, shape, console)
        try:
            run.rounds()
        finally:
            tell(console, shape, run.results, run.shape)
            told[shape] = as_json(run.results, run.shape)
            _write(arguments, described, told)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    workloads = [*CASES, *OTHERS]
    parser.add_argument(
        "workload", nargs="*", help=f"of {', '.join(workloads)}; none: all of them", default=[]
    )
    parser.add_argument("--shape", action="append", choices=shapes.SHAPES, help="may be repeated")
    parser.add_argument(
        "--who",
        type=lambda text: text.split(","),
        default=list(USUAL),
        metavar="NAME,NAME…",
        help=f"of {', '.join(VARIANTS)}; the default: {','.join(USUAL)}",
    )
    parser.add_argument("--rounds", type=_positive, default=5)
    parser.add_argument("--requests", type=_positive, default=32, help="at once")
    parser.add_argument(
        "--output-scale", type=float, default=1.0, help="of the output tokens in `mixed`"
    )
    parser.add_argument(
        "--kv-tokens", type=_positive, default=36864, help="the KV budget of everyone who has one"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=CACHE, help="environments, models, logs")
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="do not compare first tokens"
    )
    parser.add_argument(
        "--while-measuring",
        default="",
        metavar="COMMAND",
        help="keeps the machine quiet: it prints a line once it is, and ends with its input",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--keep", action="store_true", help="write them to results/, dated")
    arguments = parser.parse_args()
    arguments.shape = arguments.shape or ["smollm-135m"]
    arguments.workload = arguments.workload or workloads
    for kind, given, known in (
        ("workloads", arguments.workload, workloads),
        ("participants", arguments.who, list(VARIANTS)),
    ):
        if unknown := sorted(set(given) - set(known)):
            parser.error(f"unknown {kind} {unknown}; there are {', '.join(known)}")
    arguments.cache = arguments.cache.resolve()
    return arguments


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _write(
    arguments: argparse.Namespace, described: Mapping[str, object], told: Mapping[str, object]
) -> None:
    """A ratio over 1 means that ours is better."""
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": described,
        "rounds": arguments.rounds,
        "requests": arguments.requests,
        "output_scale": arguments.output_scale,
        "kv_tokens": arguments.kv_tokens,
        "seed": arguments.seed,
        "shapes": told,
    }
    text = json.dumps(result, indent=2) + "\n"
    if arguments.json:
        arguments.json.write_text(text, encoding="utf-8")
    if arguments.keep:
        RESULTS.mkdir(exist_ok=True)
        name = f"{result['date']}-cpu-peers-{'-'.join(arguments.shape)}.json"
        (RESULTS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
