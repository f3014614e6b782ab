"""`engine serve`: the HTTP server."""

import argparse

from engine.cli import options

NAME = "serve"
SUMMARY = "serve a model over HTTP, in the manner of the OpenAI API"
DESCRIPTION = (
    "Serves a model over HTTP, in the manner of the OpenAI API. SIGTERM lets"
    " running requests finish; a second one does not."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_server(parser)
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> int:
    settings = options.engine_settings(arguments)
    server = options.server_options(arguments)
    from engine.server import serve

    return serve(settings, server)
