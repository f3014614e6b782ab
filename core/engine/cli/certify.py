"""`engine certify`: run the conformance kit on a device."""

import argparse

NAME = "certify"
SUMMARY = "check that a platform keeps the contract"
DESCRIPTION = (
    "Runs the conformance kit: discovery, memory, operations, attention, a whole"
    " model, scheduling. The exit status is 0 only when nothing failed."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="NAME[:INDEX,…]")
    parser.add_argument("--json", metavar="FILE", help="write the certificate there")


def run(arguments: argparse.Namespace) -> int:
    from engine.testing.certify import run as certify

    return certify(arguments.device, arguments.json)
