"""What was measured, and how it is told: medians, spread, and ratios of medians."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from shapes import Shape

from comparison.variants import VARIANTS


@dataclass(frozen=True)
class Measure:
    """A column of numbers: of which workload, what, and which way is better."""

    workload: str
    unit: str
    higher_is_better: bool


@dataclass
class Results:
    """Of one shape. Values in the order of the rounds."""

    values: dict[Measure, dict[str, list[float]]] = field(default_factory=dict)
    refusals: dict[tuple[str, str], str] = field(default_factory=dict)  # (workload, who): reason
    agreement: dict[str, "Agreement"] = field(default_factory=dict)
    facts: dict[str, Mapping[str, object]] = field(default_factory=dict)
    ceilings: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)  # by workload

    def add(self, measure: Measure, who: str, value: float) -> None:
        self.values.setdefault(measure, {}).setdefault(who, []).append(value)

    def refuse(self, workload: str, who: str, reason: str) -> None:
        self.refusals.setdefault((workload, who), reason)


@dataclass(frozen=True)
class Agreement:
    """With transformers in float32, on the same weights and prompts."""

    first_tokens: int
    tokens: int  # until the first other one, over all prompts
    prompts: int
    tokens_in_all: int

    @property
    def suspicious(self) -> bool:
        """No rounding explains it: less than half of the first tokens."""
        return 2 * self.first_tokens < self.prompts

    def __str__(self) -> str:
        return (
            f"{self.first_tokens}/{self.prompts} first tokens,"
            f" {self.tokens}/{self.tokens_in_all} in all"
        )


def agree(outputs: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> Agreement:
    equal = [_equal_start(ours, theirs) for ours, theirs in zip(outputs, reference, strict=True)]
    return Agreement(
        first_tokens=sum(count > 0 for count in equal),
        tokens=sum(equal),
        prompts=len(equal),
        tokens_in_all=sum(map(len, reference)),
    )


def _equal_start(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def counterpart(who: str, present: Sequence[str]) -> str | None:
    """The variant of ours that another one is compared with: of the same width if there is one,
    else the widest of ours. None if nothing of ours is present."""
    ours = [name for name in present if VARIANTS[name].peer == "engine"]
    if not ours or who in ours:
        return None
    width = _width(who)
    same = [name for name in ours if _width(name) == width]
    return same[0] if same else max(ours, key=lambda name: VARIANTS[name].weight_bits)


def _width(name: str) -> int:
    """Bits, without what scales add to them."""
    return int(VARIANTS[name].weight_bits)


def ratio(measure: Measure, ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of medians; over 1 means that ours is better."""
    a, b = statistics.median(ours), statistics.median(theirs)
    return a / b if measure.higher_is_better else b / a


def tell(console: Console, title: str, results: Results, shape: Shape) -> None:
    table = Table("workload", "who", "median", "min..max", "", "ours/theirs", title=title, box=None)
    for measure, rows in results.values.items():
        ranked = sorted(
            rows, key=lambda who: statistics.median(rows[who]), reverse=measure.higher_is_better
        )
        for who in ranked:
            values = rows[who]
            against = counterpart(who, list(rows))
            told = f"{ratio(measure, rows[against], values):.2f} ({against})" if against else ""
            table.add_row(
                measure.workload,
                who,
                f"{statistics.median(values):,.4g}",
                f"{min(values):,.4g}..{max(values):,.4g}",
                measure.unit,
                told,
            )
        table.add_section()
    console.print(table)
    _tell_bandwidth(console, results, shape)
    for who, agreement in results.agreement.items():
        warning = "  [bold red]is it the same model?[/]" if agreement.suspicious else ""
        console.print(f"{who} agrees with transformers float32: {agreement}{warning}")
    for (workload, who), reason in results.refusals.items():
        console.print(f"{workload}, {who}: not compared: {reason}", markup=False)


def _tell_bandwidth(console: Console, results: Results, shape: Shape) -> None:
    if not results.ceilings:
        return
    measured = [one for each in results.ceilings.values() for one in each]
    reads = [one["read_gb_per_s"] for one in measured]
    multiplies = [one["matmul_gflop_per_s"] for one in measured]
    console.print(
        f"memory read {min(reads):.1f}..{max(reads):.1f} GB/s, float32 matmul"
        f" {min(multiplies):.0f}..{max(multiplies):.0f} GFLOP/s, around the rounds"
    )
    for who, share in bandwidth_shares(results, shape).items():
        console.print(f"  single, {who}: {share:.0%} of what reading the weights allows")


def bandwidth_shares(results: Results, shape: Shape) -> dict[str, float]:
    """One stream's median as a share of the rate at which memory gave its weights and its KV before
    and after its rounds."""
    measured = results.ceilings.get("single")
    if not measured:
        return {}
    read = 1e9 * statistics.median(one["read_gb_per_s"] for one in measured)
    return {
        who: statistics.median(values) * bytes_per_token(shape, who) / read
        for measure, rows in results.values.items()
        if measure.workload == "single"
        for who, values in rows.items()
    }


def bytes_per_token(shape: Shape, who: str) -> float:
    """That one stream reads for a token: each matrix once, and 192 tokens of KV of 16 bits."""
    return shape.matrix_weights * VARIANTS[who].weight_bits / 8 + 192 * shape.kv_numbers * 2


def as_json(results: Results, shape: Shape) -> dict[str, object]:
    return {
        "numbers": [
            {
                "workload": measure.workload,
                "unit": measure.unit,
                "who": who,
                "median": statistics.median(values),
                "values": values,
                "against": (against := counterpart(who, list(rows))),
                "ratio": ratio(measure, rows[against], values) if against else None,
            }
            for measure, rows in results.values.items()
            for who, values in rows.items()
        ],
        "bandwidth_shares": bandwidth_shares(results, shape),
        "ceilings": results.ceilings,
        "agreement": {who: vars(one) for who, one in results.agreement.items()},
        "facts": results.facts,
        "not_compared": [
            {"workload": workload, "who": who, "reason": reason}
            for (workload, who), reason in results.refusals.items()
        ],
    }
