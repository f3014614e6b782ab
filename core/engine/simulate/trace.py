"""Requests as they once arrived somewhere, from a CSV or JSON-lines file.

    arrival_s,input_tokens,output_tokens[,block_ids]

`block_ids` names the blocks of 512 tokens that make the prompt, the last one perhaps in part:
equal ids at the beginning are a shared prefix.
"""

import csv
import json
import random
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import ConfigError

#: Tokens that one of a trace's block ids stands for.
TRACE_BLOCK = 512
_COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
_BLOCKS = "block_ids"
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival."""

    arrivals: "array[float]" = field(default_factory=lambda: array("d"))  # seconds, from 0 on
    inputs: "array[int]" = field(default_factory=lambda: array("l"))  # tokens
    outputs: "array[int]" = field(default_factory=lambda: array("l"))  # tokens
    blocks: list[tuple[int, ...]] = field(default_factory=list)  # empty: nobody knows them

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def span_s(self) -> float:
        """From one start of the trace to the next, when it is repeated."""
        return self.arrivals[-1] * len(self) / max(1, len(self) - 1)

    @property
    def rate(self) -> float:
        """Requests a second; 0.0 when they all arrive at once."""
        return len(self) / self.span_s if self.span_s else 0.0

    def select(self, chosen: "array[int]") -> "Trace":
        """The requests of these places."""
        return Trace(
            array("d", (self.arrivals[i] for i in chosen)),
            array("l", (self.inputs[i] for i in chosen)),
            array("l", (self.outputs[i] for i in chosen)),
            [self.blocks[i] for i in chosen] if self.blocks else [],
        )


def read_trace(path: Path) -> Trace:
    """
    Raises:
        ConfigError: there is no such file, or it has no requests, or a line is wrong: names it.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = file.readlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the trace {path} cannot be read: {error}") from error
    rows = _json_rows(path, lines) if _is_json(path, lines) else _csv_rows(path, lines)
    found = sorted(
        (_row(path, number, row) for number, row in rows), key=lambda request: request[0]
    )
    if not found:
        raise ConfigError(f"the trace {path} has no requests")
    with_blocks = [request[3] is not None for request in found]
    if any(with_blocks) and not all(with_blocks):
        raise ConfigError(f"some lines of the trace {path} have {_BLOCKS} and some have none")
    first = found[0][0]
    return Trace(
        array("d", (request[0] - first for request in found)),
        array("l", (request[1] for request in found)),
        array("l", (request[2] for request in found)),
        [request[3] for request in found if request[3] is not None],
    )


def scaled(trace: Trace, *, requests: int | None, rate: float | None, seed: int) -> Trace:
    """So many requests (the trace is repeated, or ends early), arriving so many a second.

    The first round is the trace as it is; each later one begins at another place of it, so that
    rounds are not alike, and shares no prefix with other rounds.
    """
    count = len(trace) if requests is None else requests
    generator = random.Random(seed)
    whole = Trace()
    rounds = 0
    while len(whole) < count:
        _append(whole, trace, generator.randrange(len(trace)) if rounds else 0, rounds, count)
        rounds += 1
    if rate is None or not trace.rate:
        return whole
    factor = trace.rate / rate
    for i, arrival in enumerate(whole.arrivals):
        whole.arrivals[i] = arrival * factor
    return whole


def _append(whole: Trace, trace: Trace, start: int, rounds: int, count: int) -> None:
    """One more round, from `start` on and around, until there are `count` requests."""
    span, first = trace.span_s, trace.arrivals[start]
    highest = max((max(ids) for ids in trace.blocks if ids), default=0) + 1 if trace.blocks else 0
    for i in [*range(start, len(trace)), *range(start)][: count - len(whole)]:
        after = trace.arrivals[i] - first
        whole.arrivals.append(rounds * span + (after if i >= start else after + span))
        whole.inputs.append(trace.inputs[i])
        whole.outputs.append(trace.outputs[i])
        if trace.blocks:
            shift = rounds * highest
            whole.blocks.append(tuple(one + shift for one in trace.blocks[i]))


_Request = tuple[float, int, int, tuple[int, ...] | None]


def _row(path: Path, number: int, row: Mapping[str, Any]) -> _Request:
    arrival = _number(path, number, row, "arrival_s", float, 0)
    inputs = _number(path, number, row, "input_tokens", _whole, 1)
    outputs = _number(path, number, row, "output_tokens", _whole, 1)
    if row.get(_BLOCKS) is None:
        return arrival, inputs, outputs, None
    ids = _block_ids(path, number, row[_BLOCKS])
    if len(ids) != -(-inputs // TRACE_BLOCK):
        raise _wrong(
            path,
            number,
            _BLOCKS,
            f"{len(ids)} ids of {TRACE_BLOCK} tokens do not make {inputs} input_tokens",
        )
    return arrival, inputs, outputs, ids


def _number(
    path: Path,
    number: int,
    row: Mapping[str, Any],
    column: str,
    kind: Callable[[Any], Number],
    least: int,
) -> Number:
    try:
        value = kind(row[column])
    except (KeyError, TypeError, ValueError) as error:
        given = row.get(column)
        raise _wrong(path, number, column, f"it must be a number, got {given!r}") from error
    if not least <= value < 2**53:  # not a number is refused by the same rule
        raise _wrong(path, number, column, f"it must be at least {least}, got {value}")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("a part of a token")
    return int(value)


def _block_ids(path: Path, number: int, given: Any) -> tuple[int, ...]:
    try:
        ids = tuple(int(one) for one in (given.split() if isinstance(given, str) else given))
    except (TypeError, ValueError) as error:
        raise _wrong(
            path, number, _BLOCKS, f"whole numbers were expected, got {given!r}"
        ) from error
    if any(one < 0 for one in ids):
        raise _wrong(path, number, _BLOCKS, "an id is negative")
    return ids


def _wrong(path: Path, number: int, column: str, reason: str) -> ConfigError:
    return ConfigError(f"{path}, line {number}, column {column}: {reason}")


def _is_json(path: Path, lines: list[str]) -> bool:
    first = next((line for line in lines if line.strip()), "")
    return path.suffix in (".jsonl", ".json") or first.lstrip().startswith("{")


def _json_rows(path: Path, lines: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise _wrong(path, number, str(error.colno), f"no JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise _wrong(path, number, "1", "each line must be a JSON object")
        yield number, row


def _csv_rows(path: Path, lines: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader, [])]
    if missing := [name for name in _COLUMNS if name not in header]:
        raise ConfigError(
            f"{path}, line 1: the column {missing[0]} is missing; a trace begins with the line"
            f" {','.join(_COLUMNS)}[,{_BLOCKS}]"
        )
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            raise _wrong(
                path,
                reader.line_num,
                header[min(len(cells), len(header)) - 1],
                f"the line has {len(cells)} columns instead of {len(header)}",
            )
        yield reader.line_num, dict(zip(header, cells, strict=True))
