"""Measures the engine, and compares it with others in the same run. See README.md."""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import machine
import shapes
from http_streams import http
from peers import PEERS
from rich.console import Console
from rich.table import Table
from workloads import WORKLOADS, Outcome, Setup

ALL = {**WORKLOADS, "http": http}
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    arguments = _parse()
    described = machine.describe()
    model = (
        Path(arguments.model)
        if arguments.model
        else shapes.folder(arguments.shape, arguments.dtype)
    )
    setup = Setup(
        model=model,
        vocab_size=json.loads((model / "config.json").read_text())["vocab_size"],
        device=arguments.device,
        dtype=arguments.dtype,
        requests=arguments.requests,
        seed=arguments.seed,
        peers=tuple(arguments.peer),
        settings=dict(map(_setting, arguments.set)),
    )
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in described.items()))
    console.print(f"model {arguments.model or arguments.shape}, {setup.dtype}, {setup.device}")
    outcomes = []
    for name in arguments.workload or ALL:
        outcomes.append(ALL[name](setup))
        _print(console, outcomes[-1])
    _write(arguments, described, outcomes)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", nargs="*", help=f"of {', '.join(ALL)}; none: all of them")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--shape", choices=shapes.SHAPES, default="tiny", help="of random weights")
    model.add_argument("--model", help="a folder, instead of random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--peer", action="append", default=[], choices=PEERS, help="compare; may be repeated"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the engine"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--keep", action="store_true", help="write them to results/, dated")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.workload) - set(ALL)):
        parser.error(f"unknown workloads {unknown}; there are {', '.join(ALL)}")
    return arguments


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _print(console: Console, outcome: Outcome) -> None:
    console.print(f"\n[bold]{outcome.workload}[/]: {outcome.described}")
    table = Table("measure", *outcome.numbers, *(f"x {who}" for who in outcome.ratios), box=None)
    for name, ours in outcome.numbers["engine"].items():
        others = [numbers.get(name) for who, numbers in outcome.numbers.items() if who != "engine"]
        ratios = [ratio.get(name) for ratio in outcome.ratios.values()]
        cells = ["" if value is None else f"{value:,.4g}" for value in (ours, *others)]
        cells += ["" if value is None else f"{value:.2f}" for value in ratios]
        table.add_row(name, *cells)
    console.print(table)


def _write(
    arguments: argparse.Namespace, described: Mapping[str, object], outcomes: list[Outcome]
) -> None:
    """A ratio over 1 means that the engine is better."""
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": described,
        "model": Path(arguments.model).name if arguments.model else arguments.shape,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "requests": arguments.requests,
        "seed": arguments.seed,
        "settings": arguments.set,
        "workloads": [
            {
                "name": one.workload,
                "described": one.described,
                "numbers": one.numbers,
                "ratios": one.ratios,
            }
            for one in outcomes
        ],
    }
    text = json.dumps(result, indent=2) + "\n"
    if arguments.json:
        Path(arguments.json).write_text(text, encoding="utf-8")
    if arguments.keep:
        RESULTS.mkdir(exist_ok=True)
        name = f"{result['date']}-{arguments.device}-{result['model']}.json"
        (RESULTS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
