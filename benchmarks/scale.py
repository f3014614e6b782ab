"""How the cost of a decode step grows with running requests and with context. See README.md.

Each point starts an engine's loop with so many requests of so much context, and times decode steps:
all of it, the model's forward pass and logits, and what the scheduler does before and after them.
The rest is the runner's and the sampler's.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import machine
import shapes
from rich.console import Console
from rich.progress import track
from rich.table import Table

from engine.assemble import Engine, assemble
from engine.loop import EngineLoop
from engine.params import SamplingParams
from engine.request import Submission

REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)
#: Of requests, while the context grows; of context, while the requests do.
FEW, SHORT = 4, 256
WARM_UP_STEPS = 3
BLOCK_SIZE = 32  # every platform's kernels take it
#: Of prompts, which are not really computed.
TOKENS_A_STEP = 2048
#: What the model made of one step, once it was asked.
HIDDEN: list[Any] = []


def main() -> int:
    arguments = _parse()
    points = [(requests, SHORT) for requests in arguments.requests]
    points += [(FEW, context) for context in arguments.contexts]
    made = arguments.steps + 2 * WARM_UP_STEPS + max(r * c for r, c in points) // TOKENS_A_STEP * 2
    longest = max(context for _, context in points) + made
    num_tokens = max(requests * (context + made) for requests, context in points)
    model = _with_context(shapes.folder(arguments.shape, arguments.dtype), longest)
    settings = {
        "model": str(model),
        "device": arguments.device,
        "dtype": arguments.dtype,
        "max_requests": max((*arguments.requests, FEW)),
        "max_batch_tokens": TOKENS_A_STEP,
        "step_target_s": 0.0,
        "block_size": BLOCK_SIZE,
        "num_blocks": num_tokens // BLOCK_SIZE + max((*arguments.requests, FEW)),
        **dict(map(_setting, arguments.set)),
    }
    engine = assemble(settings)
    _write_kv(engine.loop)
    try:
        by_requests = [
            _point(engine, requests, SHORT, arguments.steps)
            for requests in track(arguments.requests, "requests")
        ]
        by_context = [
            _point(engine, FEW, context, arguments.steps)
            for context in track(arguments.contexts, "context")
        ]
        ledger = engine.facts.ledger.splitlines()
    finally:
        engine.close()
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "model": arguments.shape,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "settings": arguments.set,
        "ledger": ledger,
        "by_requests": by_requests,
        "by_context": by_context,
    }
    _print("running requests", "requests", by_requests)
    _print("context", "context", by_context)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if arguments.png:
        _plot(result, arguments.png)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=shapes.SHAPES, default="smollm-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--requests", type=int, nargs="*", default=REQUESTS, metavar="COUNT")
    parser.add_argument("--contexts", type=int, nargs="*", default=CONTEXTS, metavar="TOKENS")
    parser.add_argument("--steps", type=int, default=16, help="timed at each point")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--png", metavar="FILE", help="plot them; needs matplotlib")
    return parser.parse_args()


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _with_context(folder: Path, length: int) -> Path:
    """The same model, said to be made for as much context: speed does not depend on sense."""
    described = json.loads((folder / "config.json").read_text())
    if described["max_position_embeddings"] >= length:
        return folder
    other = folder.with_name(f"{folder.name}-{length}")
    other.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.name not in ("config.json", "complete") and not (other / file.name).exists():
            (other / file.name).symlink_to(file)
    described["max_position_embeddings"] = length
    (other / "config.json").write_text(json.dumps(described), encoding="utf-8")
    return other


def _point(engine: Engine, requests: int, context: int, steps: int) -> dict[str, float]:
    """Seconds of one decode step, the median of `steps`, and of its parts."""
    loop = engine.loop
    tokens = _tokens_while_filling(engine, requests, context) + WARM_UP_STEPS + steps + 1
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    random_ = random.Random(requests * context)
    ids = [f"{requests}-{context}-{number}" for number in range(requests)]
    for id in ids:
        prompt = tuple(random_.randrange(loop.vocab_size or 1) for _ in range(context))
        loop.submit(Submission(id, prompt, params))
    with _without_model(loop):
        while loop.scheduler.waiting or any(not one.output for one in loop.scheduler.running):
            loop.step()
    for _ in range(WARM_UP_STEPS):
        loop.step()
    with _clocked(loop) as spent:
        taken = []
        for _ in range(steps):
            spent.clear()
            began = time.perf_counter()
            loop.step()
            taken.append({"step": time.perf_counter() - began, **spent})
        if loop.stats.num_running != requests:
            raise RuntimeError(f"{requests} requests should run, not {loop.stats.num_running}")
    for id in ids:
        loop.abort(id)
    loop.run_until_idle()
    found = {name: median(one[name] for one in taken) for name in taken[0]}
    return {
        "requests": requests,
        "context": context,
        "step_s": found["step"],
        "scheduler_s": found["scheduler"],
        "model_s": found["model"],
        "scheduler_share": found["scheduler"] / found["step"],
        "tokens_per_s": requests / found["step"],
    }


def _tokens_while_filling(engine: Engine, requests: int, context: int) -> int:
    """The most tokens that one request makes while the prompts of the others are computed."""
    return 2 * -(-requests * context // engine.loop.scheduler.max_batch_tokens) + WARM_UP_STEPS


@contextmanager
def _without_model(loop: EngineLoop) -> Iterator[None]:
    """Prompts need not be computed: a decode step takes as long over any KV that was written."""
    graphs = vars(loop.runner)["_graphs"]
    run = graphs.run

    def stand_in(forward: Any, inputs: Any) -> Any:
        count = len(inputs.input_ids)
        if not HIDDEN:
            HIDDEN.append(run(forward, inputs))
        return HIDDEN[0].new_zeros(count, HIDDEN[0].shape[1])

    graphs.run = stand_in
    try:
        yield
    finally:
        del graphs.run


def _write_kv(loop: EngineLoop) -> None:
    """Memory that was never written is one page of zeros, which every cache holds."""
    import torch

    with torch.inference_mode():
        for cache in vars(loop.runner)["_layers"].caches:
            for tensor in cache if isinstance(cache, list | tuple) else [cache]:
                tensor.fill_(60)  # four bytes of it are 0.01, if they should be a scale


@contextmanager
def _clocked(loop: EngineLoop) -> Iterator[dict[str, float]]:
    """Seconds in the scheduler, and on a host device in the model, since the last `clear`."""
    runner = vars(loop.runner)
    model, graphs, scheduler = runner["model"], runner["_graphs"], loop.scheduler
    spent: dict[str, float] = {}

    def clocked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began
            return result

        return call

    places = [(graphs, "run", "model"), (model, "logits", "model")]
    places += [(scheduler, "schedule", "scheduler"), (scheduler, "update", "scheduler")]
    for owner, method, name in places:
        setattr(owner, method, clocked(getattr(owner, method), name))
    try:
        yield spent
    finally:
        for owner, method, _ in places:
            delattr(owner, method)


def _print(title: str, column: str, points: Sequence[Mapping[str, float]]) -> None:
    table = Table(
        title, "step, ms", "model, ms", "scheduler, ms", "its share", "tokens/s", box=None
    )
    for point in points:
        milliseconds = [f"{1e3 * point[name]:.3f}" for name in ("step_s", "model_s", "scheduler_s")]
        share = f"{point['scheduler_share']:.2%}"
        table.add_row(str(point[column]), *milliseconds, share, f"{point['tokens_per_s']:.1f}")
    Console().print(table)


def _plot(result: Mapping[str, Any], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    sides = (
        (axes[0], "requests", f"running requests, context from {SHORT}", result["by_requests"]),
        (axes[1], "context", f"context of {FEW} requests, tokens", result["by_context"]),
    )
    for axis, column, label, points in sides:
        x = [point[column] for point in points]
        for name in ("step", "model", "scheduler"):
            axis.plot(x, [1e3 * point[f"{name}_s"] for point in points], marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="milliseconds a decode step")
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(f"{result['model']}, {result['dtype']}, {result['device']}")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
