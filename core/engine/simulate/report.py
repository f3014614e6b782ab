"""What a simulation found, as numbers, a table and JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.simulate.fleet import FleetOutcome
from engine.simulate.replica import Setup, gap_of

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """What a request must get to count for goodput. None: it may take as long as it likes."""

    ttft_s: float | None = None  # to the first token
    itl_s: float | None = None  # mean time between its tokens

    @property
    def any(self) -> bool:
        return self.ttft_s is not None or self.itl_s is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Seconds, but where the name says otherwise. Percentiles by their number."""

    requests: int
    completed: int
    refused: Mapping[str, int]
    replicas: int
    devices: int
    makespan_s: float
    ttft_s: Mapping[int, float]
    itl_s: Mapping[int, float]  # of all times between two tokens, to 1 %
    latency_s: Mapping[int, float]  # from arrival to the last token
    requests_per_s: float
    tokens_per_s: float  # of output
    goodput_per_s: float | None  # requests that met the objectives; None: there are none
    goodput_share: float | None
    prefix_hit_rate: float | None  # of prompt tokens; None: nothing was looked up
    preemptions: int
    steps: int
    busy_share: float  # of the time, that a replica computes
    kv_use: Sequence[tuple[float, float]]  # (time, share of all blocks), by period
    cost: float | None  # in the price's currency
    cost_per_million_tokens: float | None

    def as_json(self) -> dict[str, Any]:
        """JSON has no NaN: what does not exist is null."""
        found = asdict(self)
        for name in ("ttft_s", "itl_s", "latency_s"):
            known = {f"p{p}": value for p, value in found[name].items()}
            found[name] = {p: None if math.isnan(value) else value for p, value in known.items()}
        return found


def make_report(
    outcome: FleetOutcome,
    setup: Setup,
    *,
    replicas: int,
    devices: int,
    objectives: Objectives,
    price: float | None,
) -> Report:
    """`devices` in all; `price` of one of them an hour."""
    trace, makespan = outcome.trace, outcome.makespan_s
    done = [i for i, end in enumerate(outcome.finished) if end == end]
    ttft = {i: outcome.first_token[i] - trace.arrivals[i] for i in done}
    good = sum(_meets(outcome, i, ttft[i], objectives) for i in done)
    per_s = 1 / makespan if makespan else 0.0
    cost = None if price is None else price * devices * makespan / 3600
    return Report(
        requests=len(trace),
        completed=len(done),
        refused=outcome.refused,
        replicas=replicas,
        devices=devices,
        makespan_s=makespan,
        ttft_s=percentiles(list(ttft.values())),
        itl_s=_gap_percentiles(outcome.gaps),
        latency_s=percentiles([outcome.finished[i] - trace.arrivals[i] for i in done]),
        requests_per_s=len(done) * per_s,
        tokens_per_s=outcome.tokens * per_s,
        goodput_per_s=good * per_s if objectives.any else None,
        goodput_share=good / len(trace) if objectives.any else None,
        prefix_hit_rate=(
            outcome.prefix_hits / outcome.prefix_queries if outcome.prefix_queries else None
        ),
        preemptions=outcome.preemptions,
        steps=outcome.steps,
        busy_share=outcome.busy_s * per_s / replicas,
        kv_use=_kv_use(outcome, setup, replicas),
        cost=cost,
        cost_per_million_tokens=cost / outcome.tokens * 1e6 if cost and outcome.tokens else None,
    )


def percentiles(values: Sequence[float]) -> dict[int, float]:
    """The smallest value that so many percent do not exceed; NaN where there are none."""
    ordered = sorted(values)
    if not ordered:
        return dict.fromkeys(PERCENTILES, math.nan)
    return {p: ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)] for p in PERCENTILES}


def table(report: Report) -> str:
    """Lines for people."""
    rows = [
        ("requests", f"{report.completed:,} of {report.requests:,} completed"),
        *((f"  {why}", f"{number:,} refused") for why, number in sorted(report.refused.items())),
        ("simulated time", f"{report.makespan_s:,.1f} s on {report.replicas:,} replicas"),
        ("time to first token", _shown(report.ttft_s)),
        ("time between tokens", _shown(report.itl_s)),
        ("latency", _shown(report.latency_s)),
        (
            "throughput",
            f"{report.requests_per_s:,.2f} requests/s, {report.tokens_per_s:,.0f} output tokens/s",
        ),
    ]
    if report.goodput_per_s is not None and report.goodput_share is not None:
        share = f"{report.goodput_share:.1%} of all requests"
        rows.append(("goodput", f"{report.goodput_per_s:,.2f} requests/s, {share}"))
    if report.prefix_hit_rate is not None:
        rows.append(("prefix cache hits", f"{report.prefix_hit_rate:.1%} of prompt tokens"))
    use = [share for _, share in report.kv_use]
    mean = sum(use) / len(use) if use else 0.0
    rows += [
        ("KV cache in use", f"{mean:.1%} mean, {max(use, default=0.0):.1%} in the fullest period"),
        ("preemptions", f"{report.preemptions:,}"),
        ("device busy", f"{report.busy_share:.1%} of the time, {report.steps:,} steps"),
    ]
    if report.cost is not None:
        per_million = report.cost_per_million_tokens or math.nan
        text = f"{report.cost:,.2f} for {report.devices:,} devices"
        rows.append(("cost", f"{text}, {per_million:,.3f} a million output tokens"))
    return "\n".join(f"{name:22}{text}" for name, text in rows)


def _shown(values: Mapping[int, float]) -> str:
    return "   ".join(f"p{percent} {_seconds(value)}" for percent, value in values.items())


def _seconds(value: float) -> str:
    return f"{value * 1e3:8.2f} ms" if value < 1 else f"{value:8.2f} s "


def _meets(outcome: FleetOutcome, i: int, ttft_s: float, objectives: Objectives) -> bool:
    if objectives.ttft_s is not None and ttft_s > objectives.ttft_s:
        return False
    gaps = outcome.trace.outputs[i] - 1
    if objectives.itl_s is None or gaps == 0:
        return True
    return (outcome.finished[i] - outcome.first_token[i]) / gaps <= objectives.itl_s


def _gap_percentiles(gaps: Mapping[int, int]) -> dict[int, float]:
    total, found = sum(gaps.values()), {}
    if not total:
        return dict.fromkeys(PERCENTILES, math.nan)
    wanted, seen = list(PERCENTILES), 0
    for number in sorted(gaps):
        seen += gaps[number]
        while wanted and seen >= math.ceil(total * wanted[0] / 100):
            found[wanted.pop(0)] = gap_of(number)
    return found


def _kv_use(outcome: FleetOutcome, setup: Setup, replicas: int) -> tuple[tuple[float, float], ...]:
    whole = setup.num_blocks * setup.period_s * replicas
    last = max(outcome.kv_use, default=-1)
    return tuple(
        (period * setup.period_s, outcome.kv_use.get(period, 0.0) / whole)
        for period in range(last + 1)
    )
