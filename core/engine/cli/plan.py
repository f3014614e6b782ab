"""`engine plan`: what a model needs and reaches on a device, before it is loaded."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import options
from engine.errors import ConfigError

if TYPE_CHECKING:
    from engine.simulate.plan import Plan
    from engine.simulate.target import Target

NAME = "plan"
SUMMARY = "predict what a model needs and reaches on a device"
DESCRIPTION = (
    "Prints the memory ledger, the greatest context, and the speed to expect, without loading"
    " weights: a folder with nothing but config.json will do. Speed is a prediction, and says how"
    " far earlier ones were off."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--json", metavar="FILE", help="write the plan there")
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> int:
    from engine.simulate.plan import make_plan
    from engine.simulate.target import find_target

    target = find_target(options.engine_settings(arguments))
    plan = make_plan(target)
    print(describe(target))
    print(show(plan))
    if arguments.json:
        write_json(arguments.json, {**about(target), **plan.as_json()})
    return 0


def describe(target: "Target") -> str:
    """Which model on which device, and where the device's numbers come from."""
    chosen, ranks = target.chosen, target.config.tensor_parallel
    device = target.profile.name if target.profile else target.platform
    weights = f", {target.config.quantization} weights" if target.config.quantization else ""
    lines = [
        f"{target.facts.name}: {target.size.weights / 1e6:,.1f} million weights, {chosen.dtype}"
        f"{weights}, KV in {chosen.kv_dtype}; on {f'{ranks} x ' if ranks > 1 else ''}{device}"
    ]
    if target.profile is not None and target.profile.source:
        lines.append(f"{device}: {target.profile.source}")
    return "\n".join(lines)


def about(target: "Target") -> dict[str, object]:
    """The same for JSON."""
    profile = target.profile
    return {
        "model": target.facts.name,
        "weights": target.size.weights,
        "dtype": target.chosen.dtype,
        "kv_dtype": target.chosen.kv_dtype,
        "quantization": target.config.quantization,
        "device": profile.name if profile else target.platform,
        "source": profile.source if profile else None,
        "tensor_parallel": target.config.tensor_parallel,
    }


def show(plan: "Plan") -> str:
    lines = [
        str(plan.ledger),
        "",
        f"KV of a token      {plan.kv_token_bytes:,} bytes",
        f"greatest context   {plan.max_context:,} tokens,"
        f" {plan.max_context_requests:,} requests of it at once",
    ]
    if plan.speed is None:
        return "\n".join([*lines, f"speed              not predicted: {plan.why_no_speed}"])
    from engine.simulate.plan import CONTEXT

    speed, note = plan.speed, f"(predicted; {plan.speed.accuracy})"
    lines += [
        f"first token        {speed.ttft_s * 1e3:,.1f} ms after {CONTEXT:,} tokens {note}",
        f"one stream         {speed.stream_tokens_per_s:,.1f} tokens/s {note}",
        f"{f'{speed.batch:,} streams':18} {speed.batch_tokens_per_s:,.0f} tokens/s {note}",
    ]
    return "\n".join(lines)


def write_json(path: str, content: dict[str, object]) -> None:
    """
    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path} cannot be written: {error}") from error
