"""Compiles every kernel of `engine_triton` for chips that are not here, and says what it needs.

    python tools/kernel_table.py                      # writes docs/kernels.md
    python tools/kernel_table.py --target sm_89       # prints one chip's table

The package's own host functions are called, with the cases of platforms/triton/tests/cases, over a
stand-in for Triton's driver: nothing is launched. Each chip has a process of its own, two at a
time. A case that is not compiled in time ends its process, is named, and the rest goes on in
another.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "kernels.md"
GROUPS = tuple(sorted((ROOT / "platforms/triton/tests/cases").glob("*.py")))
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx90a", "gfx942", "gfx950", "gfx1100")

#: Of one case on one chip: many times what the slowest takes.
LIMIT_S = 120.0
_START_S = 120.0  # until a process has imported torch and triton

INTRODUCTION = """\
# Kernels

Written by `tools/kernel_table.py`, which compiles every kernel of `platforms/triton` for chips that
are not here, with Triton {triton}, as the package's own code launches it. Do not edit.

Of each kernel: registers of a lane, shared memory of a block, the matrix instruction it uses, and
bytes of a lane that did not fit into registers (*spilled*), if any. No number says how fast it is:
nothing was launched.
"""


def measure(
    targets: Sequence[str] = TARGETS,
    groups: Sequence[Path] = GROUPS,
    limit_s: float = LIMIT_S,
) -> list[dict[str, Any]]:
    """One entry a case and chip, as `_results` makes them; never raises for what a kernel does."""
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda target: _measure_target(target, groups, limit_s), targets)
        return [one for of_target in found for one in of_target]


def problems(result: dict[str, Any]) -> list[str]:
    """What is wrong with one entry, in sentences."""
    where = f"{result['group']}, {result['case']!r} on {result['target']}"
    if error := result.get("error"):
        return [f"{where}: {error}"]
    usages = result.get("usages", [])
    found = []
    for one in usages:
        if result["hot"] and one["spilled_bytes"]:
            found.append(f"{where}: {one['kernel']} spills {one['spilled_bytes']} bytes")
    if result["matrix"] and "unless" not in result and not any(one["matrix"] for one in usages):
        found.append(f"{where}: no kernel uses a matrix instruction")
    if not usages and "unless" not in result:
        found.append(f"{where}: nothing was launched")
    return found


def page(results: Sequence[dict[str, Any]]) -> str:
    """The whole file."""
    triton = importlib.metadata.version("triton")
    targets = list(dict.fromkeys(one["target"] for one in results))
    lines = [INTRODUCTION.format(triton=triton)]
    for group in dict.fromkeys(one["group"] for one in results):
        lines += [f"## {group.capitalize()}", "", _row("case", "kernel", targets)]
        lines.append(_row("---", "---", ["---"] * len(targets)))
        of_group = [one for one in results if one["group"] == group]
        for case in dict.fromkeys(one["case"] for one in of_group):
            by_target = {one["target"]: one for one in of_group if one["case"] == case}
            lines += _case_rows(case, [by_target[target] for target in targets])
        lines += ["", *_refusals(of_group)]
    return "\n".join(lines).rstrip() + "\n"


def _case_rows(case: str, results: Sequence[dict[str, Any]]) -> Iterator[str]:
    kernels = dict.fromkeys(usage["kernel"] for one in results for usage in one.get("usages", ()))
    for kernel in kernels or ("none",):
        yield _row(case, kernel.strip("_"), [_cell(one, kernel) for one in results])


def _cell(result: dict[str, Any], kernel: str) -> str:
    """Of the largest of its variants."""
    if "error" in result:
        return "fails"
    usages = [one for one in result.get("usages", ()) if one["kernel"] == kernel]
    if not usages:
        return "—"
    most = max(usages, key=lambda one: (one["spilled_bytes"], one["registers"]))
    parts = [f"{most['registers']} regs"]
    if most["shared_memory"]:
        parts.append(_size(most["shared_memory"]))
    parts += sorted({name for one in usages for name in one["matrix"]})
    if most["spilled_bytes"]:
        parts.append(f"*spilled* {most['spilled_bytes']} B")
    return ", ".join(parts)


def _size(num_bytes: int) -> str:
    return f"{num_bytes} B" if num_bytes < 1024 else f"{num_bytes / 1024:.3g} KiB"


def _refusals(results: Sequence[dict[str, Any]]) -> list[str]:
    found = dict.fromkeys(
        f"* {one['case']} on {one['target']}: {one['unless']}" for one in results if "unless" in one
    )
    return [*found, ""] if found else []


def _row(case: str, kernel: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([case, kernel, *cells])} |"


def _measure_target(target: str, groups: Sequence[Path], limit_s: float) -> list[dict[str, Any]]:
    """In as many processes as it takes: each ends at a case that hangs or crashes it."""
    found: list[dict[str, Any]] = []
    while True:
        ended = _run_worker(target, groups, limit_s, found)
        if ended is None:
            return found
        found.append(ended)


def _run_worker(
    target: str, groups: Sequence[Path], limit_s: float, found: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Add the results of cases after those that are found; return the entry of one that ended the
    process, or None if all are done.

    Raises:
        RuntimeError: the process ended, or hangs, before its first case.
    """
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, "--worker", target, "--skip", str(len(found))]
    worker = subprocess.Popen(
        [*command, *map(str, groups)], stdout=subprocess.PIPE, text=True, env=environment
    )
    said: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=_read, args=(worker, said))
    reader.start()
    running: dict[str, Any] | None = None
    try:
        while line := said.get(timeout=_START_S if running is None else limit_s):
            running = json.loads(line)
            if "usages" in running or "error" in running or "unless" in running:
                found.append(running)
    except queue.Empty:
        error = f"it was not compiled in {limit_s:.0f} s"
    else:
        if worker.wait() == 0:
            return None
        error = f"the compiler ended the process with status {worker.returncode}"
    finally:
        worker.kill()
        worker.wait()
        reader.join()
        if worker.stdout:
            worker.stdout.close()
    if running is None or running in found:
        raise RuntimeError(f"no case of {target} was tried: {error}")
    return {**running, "error": error}


def _read(worker: "subprocess.Popen[str]", said: "queue.Queue[str]") -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        said.put(line)
    said.put("")


def _work(target: str, groups: Sequence[Path], skip: int) -> None:
    """In a worker: each case is announced, then its result follows, a line of JSON each."""
    for folder in ("core", "platforms/triton", "tests/support"):
        sys.path.insert(0, str(ROOT / folder))
    from engine_triton.architecture import Architecture

    architecture = Architecture.named(target)
    cases = [(group.stem, case) for group in groups for case in _load(group)]
    for group, case in cases[skip:]:
        entry = {
            "target": target,
            "group": group,
            "case": case.name,
            "hot": case.hot,
            "matrix": case.matrix,
        }
        print(json.dumps(entry), flush=True)
        print(json.dumps({**entry, **_compile(case, architecture)}), flush=True)


def _compile(case: Any, architecture: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from engine_triton.offline import standing_in

    if reason := case.unless(architecture):
        return {"unless": reason}
    try:
        with standing_in(architecture) as usages:
            case.run("cpu", architecture)
    except Exception as error:  # whatever a compiler may raise is the result
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[-1][:300]}"}
    seen = {json.dumps(asdict(one)): None for one in usages}
    return {"usages": [json.loads(one) for one in seen]}


def _load(path: Path) -> Sequence[Any]:
    spec = importlib.util.spec_from_file_location(f"{path.stem}_cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases: Sequence[Any] = module.CASES
    return cases


def main() -> int:
    """Exit status: 0; 1 when something is wrong with a kernel."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", help="print the table of one chip: sm_89, gfx942, ...")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("groups", nargs="*", type=Path, help="files of cases; all without any")
    asked = parser.parse_args()
    groups = asked.groups or GROUPS
    if asked.worker:
        _work(asked.worker, groups, asked.skip)
        return 0
    results = measure((asked.target,) if asked.target else TARGETS, groups)
    if asked.target or asked.groups:
        print(page(results))
    else:
        PAGE.write_text(page(results), encoding="utf-8")
    wrong = [problem for one in results for problem in problems(one)]
    for problem in wrong:
        print(problem, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
