"""`engine eval`: ask a model questions whose answers can be checked."""

import argparse
import json
from pathlib import Path

from engine.cli import options
from engine.errors import ConfigError

NAME = "eval"
SUMMARY = "measure a model's exact answers"
DESCRIPTION = (
    "Asks questions of the embedded model's closed world that it was not trained"
    " on, and counts the exact answers. A check of everything that may cost quality: another"
    " device, another dtype, a new platform."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--count", type=int, default=1000, help="questions (default: 1000)")
    parser.add_argument(
        "--seed", type=int, default=0, dest="question_seed", help="which questions (default: 0)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report there")
    options.add_engine(parser, without=("seed",))


def run(arguments: argparse.Namespace) -> int:
    from engine.evaluation import evaluate
    from engine.llm import LLM

    if arguments.count < 1:
        raise ConfigError(f"--count must be at least 1, got {arguments.count}")
    with LLM(**options.engine_settings(arguments)) as llm:
        report = evaluate(llm, count=arguments.count, seed=arguments.question_seed)
    print(report.table())
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report.as_json(), indent=2) + "\n")
    return 0
