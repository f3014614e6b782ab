"""Better launch parameters for one of engine_triton's kernels, on the GPU of this machine.

Every entry of the kernel's table that the tasks use is improved by small steps, one parameter at a
time. A candidate must give what the table's own parameters give, and is timed as a captured step
runs it, over inputs that no cache holds. Prints the section for
platforms/triton/engine_triton/architectures/NAME.toml.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from accelerator.budget import Budget
from accelerator.job import Job, Parts
from accelerator.tasks import KERNELS, Task, tasks
from accelerator.timing import time_calls

NO_DEVICE = 2
#: ‖out - table's‖ / ‖table's‖: other tiles sum in another order.
NEAR = 2e-2


def main(given: Sequence[str] | None = None) -> int:
    arguments = _parse(given)
    import torch

    if not torch.cuda.is_available():
        print(
            f"There is no GPU that torch {torch.__version__} can use, so nothing can be tuned.",
            file=sys.stderr,
        )
        return NO_DEVICE
    job = Job(part="", device=arguments.torch_device, engine_device=arguments.device)
    budget = Budget(arguments.budget_s)
    for kernel in arguments.kernel:
        print(tuned_section(kernel, job, budget), flush=True)
    return 0


def tuned_section(kernel: str, job: Job, budget: Budget, parts: Parts | None = None) -> str:
    """TOML; what happened is told on standard error."""
    from accelerator.tuning import to_toml, tune

    bench = Bench(kernel, tasks(kernel, job), job, parts)
    entries = list(bench.entries)
    for index in range(len(entries)):
        chosen = bench.using(index)
        if not chosen:
            _tell(f"{kernel}, entry {index}: no task uses it")
            continue
        measure = partial(bench.measure, index, chosen)
        found = tune(entries[index], measure, lambda: budget.left_s > 0)
        _tell(f"{kernel}, entry {index}: {found.tried} candidates, refused: {found.refused}")
        for label, before in found.before.items():
            _tell(f"  {label}: {1e6 * before:.1f} us, now {1e6 * found.after[label]:.1f}")
        note = f"benchmarks/gpu_tune.py {kernel}, {bench.device_name}, {time.strftime('%Y-%m-%d')}"
        entries[index] = {**found.entry, "tuned": note}
        bench.entries[index] = entries[index]
    if budget.left_s == 0:
        _tell(f"{kernel}: the time was over before everything was tried")
    return to_toml(kernel, entries)


@dataclass
class _Seen:
    """What a task gave with the table's own parameters."""

    output: Any
    used: frozenset[int]


class Bench:
    """Runs a kernel's tasks with other launch parameters than the table's."""

    def __init__(
        self, kernel: str, chosen: Sequence[Task], job: Job, parts: Parts | None = None
    ) -> None:
        from accelerator.tuning import apart

        self.kernel, self.job = kernel, job
        self._platform = (parts or Parts(job)).platform
        self._own = self._platform.architecture  # type: ignore[attr-defined]
        self.entries = apart(self._own.kernels[kernel])
        self._tasks = {task.label: task for task in chosen}
        self._seen = {label: self._look(task) for label, task in self._tasks.items()}

    @property
    def device_name(self) -> str:
        import torch

        on_gpu = self.job.on_gpu
        return torch.cuda.get_device_name(self.job.device) if on_gpu else self._own.name

    def using(self, index: int) -> list[str]:
        """The tasks that ask for this entry."""
        return [label for label, seen in self._seen.items() if index in seen.used]

    def measure(
        self, index: int, labels: Sequence[str], entry: Mapping[str, Any]
    ) -> Mapping[str, float] | str:
        """Seconds of each task with another entry in this place; or why it cannot be used."""
        from triton.compiler.errors import CompilationError
        from triton.runtime.errors import OutOfResources, PTXASError

        entries = [*self.entries[:index], entry, *self.entries[index + 1 :]]
        parts, times = self._parts(entries)[0], {}
        try:
            for label in labels:
                calls = self._tasks[label].calls(parts)
                if not near(calls[0](), self._seen[label].output):
                    return "another result"
                times[label] = time_calls(calls, self.job.device).seconds
        except (OutOfResources, PTXASError, CompilationError, AssertionError, ValueError) as error:
            return type(error).__name__
        return times

    def _look(self, task: Task) -> _Seen:
        parts, used = self._parts(self.entries)
        return _Seen(task.calls(parts)[0](), frozenset(used))

    def _parts(self, entries: Sequence[Mapping[str, Any]]) -> tuple[Parts, set[int]]:
        from accelerator.tuning import Watched, apart

        watched = Watched.of(self._own, self.kernel, apart(entries))
        parts = Parts(self.job)
        self._platform.architecture = watched  # type: ignore[attr-defined]
        vars(parts)["platform"] = self._platform
        return parts, watched.used


def near(found: Any, right: Any) -> bool:
    """Of one tensor or of several."""
    if isinstance(right, tuple):
        return all(near(a, b) for a, b in zip(found, right, strict=True))
    off = (found.double() - right.double()).norm()
    return bool(off <= NEAR * right.double().norm())


def _parse(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernel", nargs="+", choices=sorted(KERNELS))
    parser.add_argument("--budget-s", type=float, default=540, help="for everything (540)")
    parser.add_argument("--device", default="auto", help="the engine's own --device")
    parser.add_argument("--torch-device", default="cuda:0", help="the same, as torch spells it")
    return parser.parse_args(given)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
