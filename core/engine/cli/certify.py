"""`engine certify`: run the conformance kit on a device."""

import argparse

NAME = "certify"
SUMMARY = "check that a platform keeps the contract"
DESCRIPTION = (
    "Runs the conformance kit: discovery, memory, operations, attention, a whole"
    " model, scheduling, compiled programs, injected faults, several ranks. The exit status is 0"
    " only when nothing failed."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="NAME[:INDEX,…]")
    parser.add_argument("--json", metavar="FILE", help="write the certificate there")
    parser.add_argument(
        "--level", action="append", default=[], metavar="NAME", help="this one only; repeatable"
    )
    parser.add_argument(
        "--perf",
        action="store_true",
        help="also measure which share of the device's own rates is reached; leave it alone then",
    )
    parser.add_argument(
        "--known-failures",
        metavar="FILE",
        help='TOML, "CASE" = "reason": these must fail; one that passes is a failure',
    )


def run(arguments: argparse.Namespace) -> int:
    from engine.testing.certify import run as certify

    return certify(
        arguments.device,
        arguments.json,
        levels=arguments.level,
        perf=arguments.perf,
        known_path=arguments.known_failures,
    )
