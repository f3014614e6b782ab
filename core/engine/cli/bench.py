"""`engine bench`: how fast a model is on this machine."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import __version__
from engine.cli import options
from engine.errors import ConfigError

if TYPE_CHECKING:
    from engine.cli.measuring import Measured
    from engine.facts import EngineFacts

NAME = "bench"
SUMMARY = "measure a model's speed on this machine"
DESCRIPTION = (
    "Measures one stream, many mixed requests, and requests with a shared prefix. Speed hardly"
    " depends on what the weights say, so random ones of a well-known shape will do: see --shape."
)
#: Named here too, so that `--help` imports nothing.
WORKLOADS = ("single", "mixed", "prefix")


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument(
        "--shape",
        metavar="NAME",
        help="in place of a model: random weights of this shape, such as 135m, 0.5b or 1.1b",
    )
    parser.add_argument(
        "--workload",
        action="append",
        choices=WORKLOADS,
        help="measure this; may be given again (default: all)",
    )
    parser.add_argument("--requests", type=int, default=32, help="of many (default: 32)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="times each is measured; the median counts (3)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report there")
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> int:
    for name in ("requests", "repeat"):
        if vars(arguments)[name] < 1:
            raise ConfigError(f"--{name} must be at least 1, got {vars(arguments)[name]}")
    settings = options.engine_settings(arguments)
    if arguments.shape is not None:
        settings["model"] = _random_model(arguments.shape, settings)
    began = time.perf_counter()
    from engine.llm import LLM

    with LLM(**settings) as llm:
        ready_s = time.perf_counter() - began
        from engine.cli.measuring import WORKLOADS as RUN
        from engine.cli.measuring import Bench

        seed = settings.get("seed", 0)
        bench = Bench(llm, requests=arguments.requests, repeat=arguments.repeat, seed=seed)
        report = _describe(llm.facts, arguments.shape, ready_s)
        _print_heading(report, llm.facts)
        bench.warm_up()
        measured = []
        for name in arguments.workload or WORKLOADS:
            measured.append(RUN[name](bench))
            _print(measured[-1])
    if arguments.json:
        _write(arguments.json, report, measured)
    return 0


def _random_model(name: str, settings: dict[str, Any]) -> str:
    if "model" in settings:
        raise ConfigError(f"--shape {name} is in place of a model; {settings['model']} is one, too")
    from engine.cli import random_models

    dtype = settings.get("dtype", "auto")
    stored = "bfloat16" if dtype == "auto" else dtype
    return str(random_models.folder(random_models.find(name), stored))


def _describe(facts: "EngineFacts", shape: str | None, ready_s: float) -> dict[str, Any]:
    torch = sys.modules.get("torch")  # a platform may do without it
    return {
        "engine": __version__,
        "model": shape or facts.model.name,
        "platform": facts.platform,
        "device": facts.device,
        "dtype": facts.dtype,
        "quantization": facts.quantization,
        "threads": torch.get_num_threads() if torch else None,
        "ready_s": ready_s,
        "ledger": facts.ledger.splitlines(),
    }


def _print_heading(report: dict[str, Any], facts: "EngineFacts") -> None:
    weights = report["quantization"]
    kind = f"{report['dtype']} with {weights} weights" if weights else report["dtype"]
    print(
        f"{report['model']} on {report['platform']} ({report['device']}), {kind},"
        f" {report['threads'] or 'unknown'} host threads; ready after {report['ready_s']:.2f} s"
    )
    for line in facts.ledger.splitlines():
        if line.startswith("operations"):
            print(line)


def _print(measured: "Measured") -> None:
    print(f"\n{measured.workload}: {measured.described}")
    for name, value in measured.numbers.items():
        per_second = name.endswith("_per_s")
        words = name.removesuffix("_per_s" if per_second else "_s").replace("_", " ")
        print(f"  {words:24}{value:12,.{1 if per_second else 3}f} {'1/s' if per_second else 's'}")


def _write(path: str, report: dict[str, Any], measured: Sequence["Measured"]) -> None:
    workloads = [
        {"name": one.workload, "described": one.described, "numbers": dict(one.numbers)}
        for one in measured
    ]
    text = json.dumps({**report, "workloads": workloads}, indent=2)
    Path(path).write_text(text + "\n", encoding="utf-8")
