"""A picture of a simulation: what requests waited for, and what filled the KV cache."""

from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ConfigError
from engine.simulate.fleet import FleetOutcome
from engine.simulate.report import Objectives, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Points of a curve; more cannot be seen.
POINTS = 500


def require_matplotlib() -> None:
    """
    Raises:
        ConfigError: it is not installed; says what installs it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib") from error


def plot(
    path: Path, title: str, outcome: FleetOutcome, report: Report, objectives: Objectives
) -> None:
    """Draw it, in the format that the file's name says.

    Raises:
        ConfigError: matplotlib is missing, or the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    (waits, ends), (over_time, memory) = figure.subplots(2, 2)
    trace = outcome.trace
    done = [i for i, end in enumerate(outcome.finished) if end == end]
    ttft = [outcome.first_token[i] - trace.arrivals[i] for i in done]
    _shares(waits, ttft, "time to first token", objectives.ttft_s)
    _shares(ends, [outcome.finished[i] - trace.arrivals[i] for i in done], "latency", None)
    _over_time(over_time, [trace.arrivals[i] for i in done], ttft)
    _memory(memory, report)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the plot cannot be written to {path}: {error}") from error


def _shares(axes: "Axes", values: list[float], what: str, objective: float | None) -> None:
    """Which share of requests needs at most so long."""
    ordered = sorted(values)
    if ordered:
        step = max(1, len(ordered) // POINTS)
        chosen = sorted({*range(0, len(ordered), step), len(ordered) - 1})
        axes.plot([ordered[i] for i in chosen], [(i + 1) / len(ordered) * 100 for i in chosen])
        axes.set_xscale("log")
    if objective is not None:
        axes.axvline(objective, linestyle="--", color="tab:red", label="objective")
        axes.legend(loc="lower right")
    axes.set(xlabel=f"{what} (s)", ylabel="requests (%)", ylim=(0, 101))
    axes.grid(alpha=0.3)


def _over_time(axes: "Axes", arrivals: list[float], ttft: list[float]) -> None:
    """Median and 99th percentile of requests that arrived one after the other."""
    count = max(1, min(100, len(ttft) // 20))
    size = -(-len(ttft) // count) if ttft else 1
    times, median, high = [], [], []
    for start in range(0, len(ttft), size):
        part = sorted(ttft[start : start + size])
        times.append(arrivals[start])
        median.append(part[len(part) // 2])
        high.append(part[min(len(part) - 1, len(part) * 99 // 100)])
    axes.plot(times, high, label="99th percentile", color="tab:orange")
    axes.plot(times, median, label="median", color="tab:blue")
    axes.set(xlabel="arrival (s)", ylabel="time to first token (s)")
    if ttft:
        axes.set_yscale("log")
    axes.legend(loc="best")
    axes.grid(alpha=0.3)


def _memory(axes: "Axes", report: Report) -> None:
    times = [time for time, _ in report.kv_use]
    shares = [share * 100 for _, share in report.kv_use]
    axes.fill_between(times, shares, step="post", alpha=0.5)
    axes.set(xlabel="time (s)", ylabel="KV cache in use (%)", ylim=(0, max([1.0, *shares]) * 1.1))
    axes.grid(alpha=0.3)
