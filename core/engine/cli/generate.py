"""`engine generate`: continue prompts."""

import argparse
import sys

from engine.cli import options

NAME = "generate"
SUMMARY = "continue one or more prompts"
DESCRIPTION = (
    "Continues prompts, without a chat template. One prompt is answered as its text"
    " comes; several are computed together. With a single word, that is the prompt."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="-: read it from stdin")
    options.add_sampling(parser)
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> int:
    params = options.sampling_params(arguments)
    prompts = [sys.stdin.read() if text == "-" else text for text in arguments.prompts]
    from engine.llm import LLM

    with LLM(**options.engine_settings(arguments)) as llm:
        if len(prompts) == 1:
            for piece in llm.stream(prompts[0], params):
                print(piece.text, end="", flush=True)
            print()
            return 0
        for output in llm.generate(prompts, params):
            print(f"── {output.prompt}\n{output.outputs[0].text}")
    return 0
