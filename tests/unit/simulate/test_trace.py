import random
from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.simulate.trace import TRACE_BLOCK, read_trace, scaled

HEADER = "arrival_s,input_tokens,output_tokens"


def write(folder: Path, *lines: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_csv_trace_is_read_in_order_of_arrival_from_zero(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, HEADER, "7.5,10,3", "5.0,20,4"))
    assert list(trace.arrivals) == [0.0, 2.5]
    assert list(trace.inputs) == [20, 10]
    assert list(trace.outputs) == [4, 3]
    assert trace.blocks == []


def test_json_lines_of_the_same_fields_are_the_same_trace(tmp_path: Path) -> None:
    csv = read_trace(write(tmp_path, f"{HEADER},block_ids", f"1,{TRACE_BLOCK + 1},3,4 9"))
    lines = '{"arrival_s": 1, "input_tokens": 513, "output_tokens": 3, "block_ids": [4, 9]}'
    assert read_trace(write(tmp_path, lines, name="trace.jsonl")) == csv
    assert csv.blocks == [(4, 9)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0.0,ten,3", "line 3, column input_tokens: it must be a number, got 'ten'"),
        ("0.0,10,0", "line 3, column output_tokens: it must be at least 1, got 0"),
        ("-1,10,3", "line 3, column arrival_s: it must be at least 0, got -1.0"),
        ("nan,10,3", "line 3, column arrival_s: it must be at least 0, got nan"),
        ("0.0,10", "line 3, column input_tokens: the line has 2 columns instead of 3"),
        ("0.0,10,3,4", "line 3, column output_tokens: the line has 4 columns instead of 3"),
    ],
)
def test_a_wrong_line_is_named_with_its_column(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path, HEADER, "0.0,1,1", line)
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert f"{path}, {said}" in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ("1 x", "column block_ids: whole numbers were expected, got '1 x'"),
        ("1 -2", "column block_ids: an id is negative"),
        ("1 2 3", "column block_ids: 3 ids of 512 tokens do not make 600 input_tokens"),
    ],
)
def test_block_ids_must_make_the_prompt(tmp_path: Path, ids: str, said: str) -> None:
    path = write(tmp_path, f"{HEADER},block_ids", f"0,600,1,{ids}")
    with pytest.raises(ConfigError, match="line 2, ") as caught:
        read_trace(path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["arrival_s,input_tokens", "0,1"], "line 1: the column output_tokens is missing"),
        ([HEADER], "has no requests"),
        (["{oops"], "line 1, column 2: no JSON"),
        (['{"arrival_s": 0}'], "line 1, column input_tokens"),
        (['{"arrival_s": 0, "input_tokens": 1.5, "output_tokens": 1}'], "column input_tokens"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(write(tmp_path, *lines))
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv cannot be read"):
        read_trace(tmp_path / "none.csv")


def test_some_lines_with_block_ids_and_some_without_are_refused(tmp_path: Path) -> None:
    rows = '{"arrival_s": 0, "input_tokens": 1, "output_tokens": 1'
    path = write(tmp_path, rows + "}", rows + ', "block_ids": [1]}', name="t.jsonl")
    with pytest.raises(ConfigError, match="some lines"):
        read_trace(path)


def test_a_repeated_trace_goes_on_in_time_and_shares_nothing_between_rounds(
    tmp_path: Path,
) -> None:
    lines = [f"{i},{10 + i},1,{i}" for i in range(10)]
    trace = read_trace(write(tmp_path, f"{HEADER},block_ids", *lines))
    whole = scaled(trace, requests=35, rate=None, seed=3)
    assert len(whole) == 35
    assert list(whole.arrivals) == sorted(whole.arrivals)
    assert list(whole.inputs[:10]) == list(trace.inputs)
    assert sorted(whole.inputs[10:20]) == sorted(trace.inputs)
    rounds = [set(whole.blocks[i : i + 10]) for i in (0, 10, 20)]
    assert not rounds[0] & rounds[1]
    assert not rounds[1] & rounds[2]
    assert whole.rate == pytest.approx(trace.rate, rel=0.05)


def test_the_seed_decides_where_rounds_begin(tmp_path: Path) -> None:
    random.seed(0)
    lines = [f"{i},{10 + i},1" for i in range(50)]
    trace = read_trace(write(tmp_path, HEADER, *lines))
    first, again, other = (scaled(trace, requests=150, rate=None, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_trace_can_be_cut_and_hurried(tmp_path: Path) -> None:
    lines = [f"{i},{10 + i},1" for i in range(50)]
    trace = read_trace(write(tmp_path, HEADER, *lines))
    fast = scaled(trace, requests=20, rate=8.0, seed=0)
    assert len(fast) == 20
    assert fast.rate == pytest.approx(8.0)
    assert list(fast.inputs) == list(trace.inputs[:20])
