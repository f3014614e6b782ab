"""The engine on a GPU: ceilings, correctness, kernels and whole models, beside others.

Everything within a budget of nine minutes; what does not fit is named. See README.md.
"""

import argparse
import contextlib
import importlib.util
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import machine
from accelerator.budget import Budget
from accelerator.conductor import Conductor, Part, Results
from accelerator.job import Job
from accelerator.models import SHAPES, place
from accelerator.records import OURS, lines, table
from rich.console import Console

RESULTS = Path(__file__).parent / "results"
LOGS = Path(tempfile.gettempdir()) / "engine-gpu-benchmark"
MODELS = ("qwen3-0.6b", "llama-3.1-8b", "qwen2.5-0.5b")
REHEARSED = ("tiny-qwen3",)
#: Whose kernels are checked at their sizes, and what hangs on no model.
CHECKED, REST = ("llama-3.1-8b", "qwen3-0.6b", "qwen2.5-0.5b"), "rest"
#: Whole models that are checked in float32 too.
TINY = ("tiny-qwen3", "tiny-llama")
#: How the titles of parts that check begin. What they could not check is not known to be right.
RIGHT = "right"
#: Exit statuses.
FAILED, NO_DEVICE = 1, 2


def main(given: Sequence[str] | None = None) -> int:
    arguments = _parse(given)
    if not arguments.rehearse and (reason := _no_device()):
        print(reason, file=sys.stderr)
        return NO_DEVICE
    # Asked to end, it removes the models and ends its processes.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    described = machine.describe()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    budget = Budget(arguments.budget_s)
    with _models(arguments) as models:
        conductor = Conductor(
            _job(arguments, models),
            budget,
            arguments.logs,
            tell=lambda text: console.print(text, markup=False, soft_wrap=True),
        )
        try:
            for together in parts(arguments.model, _has_vllm(), arguments.rehearse):
                chosen = [part for part in together if _wanted(part, arguments.only)]
                if chosen:
                    conductor.run(*chosen)
                    _write(arguments, described, budget, conductor.results)
        finally:
            _write(arguments, described, budget, conductor.results)
            tell(console, conductor.results)
    return 0 if right(conductor.results) else FAILED


def parts(models: Sequence[str], has_vllm: bool, rehearse: bool = False) -> list[list[Part]]:
    """In the order of their importance: the last ones go without, if time is short. Those of one
    list run at the same time."""

    def serving(model: str, who: str, share_s: float, precision: str = "bf16") -> list[Part]:
        arguments = {"model": model, "who": who, "precision": precision}
        return [Part(f"{model} {precision}, {who}", "serving", share_s, arguments=arguments)]

    def share_s(model: str) -> float:
        """Of ours; weights are written and loaded in it."""
        return 35 + 5e-9 * SHAPES[model].num_bytes

    found = [
        [Part("machine", "described", 15, least_s=1)],
        [Part("ceilings", "ceilings", 20, least_s=1)],
        _checking(rehearse),
    ]
    found += [serving(model, OURS, share_s(model)) for model in models[:2]]
    found.append([Part("kernels", "kernels", 80)])
    found += [serving(model, "transformers", 45) for model in models[:1]]
    found += [serving(model, OURS, 60, "fp8") for model in models[1:2]]
    found += [serving(model, OURS, share_s(model)) for model in models[2:]]
    found += [serving(model, "transformers", 45) for model in models[1:2]]
    if has_vllm:
        found += [serving(model, "vLLM", 100) for model in models[:2]]
    patience = 4 if rehearse else 1  # the smallest sizes, but who knows on what
    return [
        [replace(part, share_s=patience * part.share_s) for part in together] for together in found
    ]


def _checking(rehearse: bool) -> list[Part]:
    """Most of its time goes into compiling kernels, which cores can do side by side."""
    kernels = [["tiny-qwen3", REST]] if rehearse else [*([name] for name in CHECKED), [REST]]
    models = [[*TINY]] if rehearse else [[*TINY], ["qwen3-0.6b"], ["qwen2.5-0.5b"]]
    return [
        Part(f"{RIGHT}, {title}: {', '.join(names)}", module, 90, arguments={"models": names})
        for title, module, groups in (
            ("kernels", "correctness", kernels),
            ("whole models", "agreement", models),
        )
        for names in groups
    ]


def right(results: Results) -> bool:
    """Every check that was asked for was made, and holds."""
    unchecked = [what for what in results.not_run if what.startswith(RIGHT)]
    return not unchecked and all(check.passed for check in results.checks)


def tell(console: Console, results: Results) -> None:
    """Correctness first: a fast wrong answer is worth nothing."""
    failed = [check for check in results.checks if not check.passed]
    console.print()
    for check in failed:
        console.print(f"FAIL {check.name}: {check.detail}", markup=False)
    passed = len(results.checks) - len(failed)
    console.print(f"{'FAIL' if failed else 'PASS'}: {passed} of {len(results.checks)} checks hold")
    console.print()
    console.print(table(lines(results.values)))
    if results.not_run:
        console.print("\nNot run:")
    for what, why in results.not_run.items():
        console.print(f"  {what}: {why}", markup=False)


def _parse(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        action="append",
        choices=SHAPES,
        help=f"a published shape, weights are random; repeatable (default: {', '.join(MODELS)})",
    )
    parser.add_argument(
        "--only", action="append", metavar="WORD", help="parts with this in their title; repeatable"
    )
    parser.add_argument("--budget-s", type=_positive, default=540, help="for everything (540)")
    parser.add_argument("--device", default="auto", help="the engine's own --device")
    parser.add_argument("--torch-device", default="cuda:0", help="the same, as torch spells it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the engine"
    )
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="keep random weights there")
    parser.add_argument(
        "--logs", type=Path, metavar="FOLDER", default=LOGS, help=f"what libraries say ({LOGS})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--keep", action="store_true", help="write them to results/, dated")
    parser.add_argument(
        "--rehearse", action="store_true", help="the smallest sizes on the processor, to try it out"
    )
    arguments = parser.parse_args(given)
    arguments.model = arguments.model or list(REHEARSED if arguments.rehearse else MODELS)
    planned = parts(arguments.model, True, arguments.rehearse)
    titles = [part.title for together in planned for part in together]
    for word in arguments.only or []:
        if not any(word in title for title in titles):
            parser.error(f"--only {word!r} is in no title; the parts are {'; '.join(titles)}")
    return arguments


def _wanted(part: Part, only: Sequence[str] | None) -> bool:
    return any(word in part.title for word in only or [""])


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


def _no_device() -> str | None:
    import torch

    if torch.cuda.is_available():
        return None
    return (
        f"There is no GPU that torch {torch.__version__} can use, so nothing was measured;"
        " --rehearse tries the script out on the processor."
    )


def _has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None


def _job(arguments: argparse.Namespace, models: Path) -> Job:
    rehearse = arguments.rehearse
    return Job(
        part="",
        device="cpu" if rehearse else arguments.torch_device,
        engine_device="cpu" if rehearse else arguments.device,
        full=not rehearse,
        models=models,
        settings=dict(map(_setting, arguments.set)),
    )


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@contextlib.contextmanager
def _models(arguments: argparse.Namespace) -> Iterator[Path]:
    """A folder for random weights, gone afterwards unless it was named."""
    if arguments.models is not None:
        arguments.models.mkdir(parents=True, exist_ok=True)
        yield arguments.models.resolve()
        return
    num_bytes = sum(SHAPES[name].num_bytes for name in arguments.model)
    with tempfile.TemporaryDirectory(prefix="engine-models-", dir=place(num_bytes)) as folder:
        yield Path(folder)


def _write(
    arguments: argparse.Namespace, described: Mapping[str, object], budget: Budget, results: Results
) -> None:
    """After every part: what was measured is kept, whatever happens to the rest."""
    told = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": described,
        "settings": arguments.set,
        "budget_s": budget.total_s,
        "spent_s": round(budget.spent_s, 1),
        **asdict(results),
        "lines": [asdict(line) for line in lines(results.values)],
    }
    text = json.dumps(told, indent=2) + "\n"
    if arguments.json:
        arguments.json.write_text(text, encoding="utf-8")
    if arguments.keep:
        device = str(results.facts.get("device", "unknown")).lower().replace(" ", "-")
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{told['date']}-gpu-{device}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
