"""`engine simulate`: replay a trace on devices that are not there."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import options
from engine.errors import ConfigError

if TYPE_CHECKING:
    from engine.simulate.fleet import FleetOutcome
    from engine.simulate.replica import Setup
    from engine.simulate.report import Report
    from engine.simulate.target import Target
    from engine.simulate.trace import Trace

NAME = "simulate"
SUMMARY = "replay a trace of requests on simulated devices"
DESCRIPTION = (
    "Replays a trace against the real scheduler and KV cache of every replica, under a virtual"
    " clock: steps take as long as the device's profile predicts. A trace is a CSV file with the"
    " columns arrival_s,input_tokens,output_tokens and perhaps block_ids (of the 512-token blocks"
    " of the prompt, which tell shared prefixes), or JSON lines of the same fields."
)
#: Named here too, so that `--help` imports nothing.
ROUTINGS = ("least-tokens", "round-robin", "same-prefix")
#: Periods over which the use of the KV cache is told.
PERIODS = 200


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--trace", required=True, metavar="FILE", help="CSV or JSON lines")
    add = parser.add_argument_group("simulation").add_argument
    add("--replicas", type=int, default=1, metavar="COUNT", help="engines side by side (1)")
    add("--requests", type=int, metavar="COUNT", help="repeat or cut the trace to so many")
    add("--rate", type=float, metavar="PER_S", help="requests a second; unset: the trace's own")
    add("--routing", choices=ROUTINGS, default=ROUTINGS[0], help=f"default: {ROUTINGS[0]}")
    add("--slo-ttft", type=float, metavar="S", help="goodput: most seconds to the first token")
    add("--slo-itl", type=float, metavar="S", help="goodput: most seconds between tokens, mean")
    add("--price", type=float, metavar="AN_HOUR", help="of one device, in any currency")
    add("--workers", type=int, metavar="COUNT", help="processes; unset: one for each core")
    add("--json", metavar="FILE", help="write the report there")
    add("--plot", metavar="FILE", help="draw it: .png, .svg or .pdf; needs matplotlib")
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> int:
    from engine.cli import plan as plan_command
    from engine.simulate import fleet, plot, report, target, trace

    _check(arguments)
    if arguments.plot:
        plot.require_matplotlib()
    requests = trace.scaled(
        trace.read_trace(Path(arguments.trace)),
        requests=arguments.requests,
        rate=arguments.rate,
        seed=options.engine_settings(arguments).get("seed", 0),
    )
    subject = target.find_target(options.engine_settings(arguments))
    setup = make_setup(subject, requests)
    print(plan_command.describe(subject))
    outcome = fleet.simulate(
        setup,
        requests,
        replicas=arguments.replicas,
        routing=arguments.routing,
        workers=arguments.workers,
        progress=_Progress(arguments.replicas),
    )
    objectives = report.Objectives(ttft_s=arguments.slo_ttft, itl_s=arguments.slo_itl)
    found = report.make_report(
        outcome,
        setup,
        replicas=arguments.replicas,
        devices=arguments.replicas * subject.config.tensor_parallel,
        objectives=objectives,
        price=arguments.price,
    )
    accuracy = target.accuracy(subject.profile)
    print(report.table(found))
    print(f"every time above is predicted; {accuracy}")
    _write(arguments, subject, outcome, found, objectives, accuracy)
    return 0


def make_setup(subject: "Target", requests: "Trace") -> "Setup":
    """What each replica is. Prefixes are cached only where the trace tells which are shared.

    Raises:
        CapacityError: the model does not fit the device.
        UnsupportedError: the platform has no profile.
    """
    from engine.simulate.plan import make_plan
    from engine.simulate.replica import Setup

    plan = make_plan(subject)
    caching = subject.config.prefix_caching and bool(requests.blocks)
    return Setup(
        config=replace(subject.config, prefix_caching=caching),
        capabilities=subject.capabilities,
        buckets=subject.buckets,
        num_blocks=plan.ledger.num_blocks,
        block_size=plan.ledger.block_size,
        max_model_len=plan.max_context,
        model=subject.time_model(),
        period_s=max(requests.arrivals[-1], 1.0) / PERIODS,
    )


class _Progress:
    """Tells a terminal how many replicas are done."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._shown = sys.stderr.isatty()

    def __call__(self, done: int) -> None:
        if self._shown:
            end = "\n" if done == self._replicas else "\r"
            print(f"{done:,} of {self._replicas:,} replicas", end=end, file=sys.stderr, flush=True)


def _check(arguments: argparse.Namespace) -> None:
    for name in ("replicas", "requests", "workers"):
        value = vars(arguments)[name]
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    for name in ("rate", "slo_ttft", "slo_itl", "price"):
        value = vars(arguments)[name]
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} must be more than 0, got {value}")


def _write(
    arguments: argparse.Namespace,
    subject: "Target",
    outcome: "FleetOutcome",
    found: "Report",
    objectives: object,
    accuracy: str,
) -> None:
    from engine.cli import plan as plan_command
    from engine.simulate import plot, report

    if arguments.json:
        about = {**plan_command.about(subject), "accuracy": accuracy, "trace": arguments.trace}
        plan_command.write_json(arguments.json, {**about, **found.as_json()})
    if arguments.plot:
        assert isinstance(objectives, report.Objectives)
        device = subject.profile.name if subject.profile else subject.platform
        title = (
            f"{subject.facts.name} on {found.replicas:,} x {device}: {found.requests:,} requests"
            f" of {Path(arguments.trace).name}\npredicted; {accuracy}"
        )
        plot.plot(Path(arguments.plot), title, outcome, found, objectives)
