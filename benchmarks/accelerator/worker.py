"""Runs one part in a process of its own: a kernel that breaks the device takes no other part along.

    python -m accelerator.worker JOB        JOB: `Job.to_json()`

says one JSON object a line on standard output; what libraries print goes to standard error.

    {"plan": [names]}                       what will be measured
    {"refused": text}                       nothing will
    {"begin": name}                         and then its records, {"kind": …}
    {"end": name, "reason": text or null}   null: it went well
    {"broken": text}                        the device is unusable; this process ends
"""

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping

from accelerator.job import Job, Measure
from accelerator.records import to_json

Say = Callable[[Mapping[str, object]], None]


def main() -> int:
    began = time.monotonic()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(answer: Mapping[str, object]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    job = Job.from_json(sys.argv[1])
    try:
        measures = importlib.import_module(f"accelerator.{job.part}").measures(job)
    except Exception as error:  # told to people, who have more to read than this part
        traceback.print_exc()
        say({"refused": f"{type(error).__name__}: {error}"})
        return 1
    say({"plan": [measure.name for measure in measures]})
    for measure in measures:
        if measure.name in job.done:
            continue
        left = job.seconds - (time.monotonic() - began)
        if left < measure.estimate_s:
            say({"end": measure.name, "reason": f"not run: {left:.0f} s were left"})
        elif not run(measure, job, say):
            return 1
    return 0


def run(measure: Measure, job: Job, say: Say) -> bool:
    """Whether the device can still be used."""
    say({"begin": measure.name})
    reason = None
    try:
        for record in measure.run():
            say(to_json(record))
    except Exception as error:  # whatever breaks in one measure: the others are still wanted
        traceback.print_exc()
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    say({"end": measure.name, "reason": reason})
    try:
        job.synchronize()
    except RuntimeError as error:
        say({"broken": str(error).splitlines()[0]})
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
