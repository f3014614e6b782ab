import itertools
import json
from dataclasses import replace

import pytest

from engine.embedded import path
from engine.embedded.messages import as_message, called
from engine.embedded.world import (
    KINDS,
    WEIGHTS,
    Question,
    Score,
    Split,
    is_right,
    questions,
    score,
)

EVERY_KIND = sorted(KINDS)


def last_user_text(question: Question) -> str:
    return [message["content"] for message in question.messages if message["role"] == "user"][-1]


def test_the_same_seed_gives_the_same_questions() -> None:
    assert list(questions(50, seed=7)) == list(questions(50, seed=7))
    assert list(questions(50, seed=7)) != list(questions(50, seed=8))


def test_as_many_questions_come_as_were_asked_for() -> None:
    assert len(list(questions(17, seed=0, split="held_out"))) == 17


def test_every_kind_has_a_weight() -> None:
    assert WEIGHTS.keys() == KINDS.keys()


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_only_the_kind_asked_for_comes_and_its_answer_is_right(kind: str, split: Split) -> None:
    for question in questions(20, seed=1, split=split, kinds=[kind]):
        assert question.kind == kind
        assert is_right(question, question.answer)
        assert is_right(question, f"\n{question.answer} ")
        assert not is_right(question, question.answer + "!")
        assert not is_right(question, "")


def test_a_kind_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="poetry"):
        next(questions(1, seed=0, kinds=["poetry"]))


BY_WORDING = ["multiply", "capital", "colour", "calendar", "chat"]


@pytest.mark.parametrize("kind", BY_WORDING)
def test_no_wording_of_a_held_out_fact_is_seen_in_training(kind: str) -> None:
    def wordings(split: Split) -> set[str]:
        drawn = questions(400, seed=2, split=split, kinds=[kind])
        return {last_user_text(question).lower().rstrip(" .?!") for question in drawn}

    assert not wordings("train") & wordings("held_out")


BY_CONTENT = ["add", "subtract", "compare", "sort", "count"]


@pytest.mark.parametrize("kind", BY_CONTENT)
def test_no_content_of_a_held_out_problem_is_seen_in_training(kind: str) -> None:
    def contents(split: Split) -> set[tuple[int, ...]]:
        drawn = questions(400, seed=3, split=split, kinds=[kind])
        return {numbers_in(last_user_text(question), kind) for question in drawn}

    assert not contents("train") & contents("held_out")


def numbers_in(text: str, kind: str) -> tuple[int, ...]:
    """The numbers of a problem, in an order that mirror images share."""
    numbers = [int(word) for word in "".join(c if c.isdigit() else " " for c in text).split()]
    if kind == "subtract" and text.lower().startswith(("subtract", "take")):
        numbers.reverse()
    return tuple(numbers) if kind in ("subtract", "count") else tuple(sorted(numbers))


def test_earlier_turns_of_held_out_chats_are_answered_rightly() -> None:
    chats = [q for q in questions(200, seed=4, split="held_out") if len(q.messages) > 3]
    assert chats
    for chat in chats:
        roles = [message["role"] for message in chat.messages if message["role"] != "system"]
        assert roles[0] == "user"
        assert roles[-1] in ("user", "tool")
        assert all(a != b for a, b in itertools.pairwise(roles))


def test_sums_and_orders_are_those_of_python() -> None:
    for question in questions(50, seed=5, kinds=["add"]):
        assert int(question.answer) == sum(numbers_in(last_user_text(question), "add"))
    for question in questions(50, seed=5, kinds=["sort"]):
        falling = "descending" in last_user_text(question) or "large" in last_user_text(question)
        expected = sorted(numbers_in(last_user_text(question), "sort"), reverse=falling)
        assert question.answer == ", ".join(map(str, expected))


def test_a_tool_call_is_right_whatever_its_spacing_and_order() -> None:
    question = next(questions(1, seed=6, kinds=["tool_call"]))
    call = called(question.answer)
    assert isinstance(call, dict)
    backwards = json.dumps(dict(reversed(call.items())), indent=2)
    assert is_right(question, f"<tool_call>{backwards}</tool_call>")
    assert not is_right(question, question.answer.replace('"name"', '"names"'))
    assert not is_right(question, "<tool_call>\n{]\n</tool_call>")
    assert not is_right(question, json.dumps(call))


def test_a_tool_call_names_a_tool_at_hand() -> None:
    for question in questions(50, seed=6, kinds=["tool_call"]):
        call = called(question.answer)
        assert isinstance(call, dict)
        assert call["name"] in [tool["function"]["name"] for tool in question.tools]


def test_a_tool_call_becomes_a_message_in_openai_form() -> None:
    question = next(questions(1, seed=6, kinds=["tool_call"]))
    message = as_message(question.answer)
    call = called(question.answer)
    assert isinstance(call, dict)
    (tool_call,) = message["tool_calls"]
    assert tool_call["function"]["name"] == call["name"]
    assert json.loads(tool_call["function"]["arguments"]) == call["arguments"]
    assert as_message("Hello.") == {"role": "assistant", "content": "Hello."}


def test_scores_count_right_replies_per_kind() -> None:
    sums = list(questions(4, seed=9, kinds=["add"]))
    capital = next(questions(1, seed=9, kinds=["capital"]))
    pairs = [(question, question.answer) for question in sums[:3]]
    marks = score([*pairs, (sums[3], "no idea"), (capital, capital.answer)])
    assert marks == {"add": Score(3, 4), "capital": Score(1, 1)}
    assert marks["add"].share == 0.75


def test_a_reply_that_only_looks_like_json_is_text() -> None:
    question = replace(next(questions(1, seed=9, kinds=["chat"])), answer="5")
    assert not is_right(question, "<tool_call>5</tool_call>")
    assert called("<tool_call>5</tool_call>") == 5


def test_the_model_that_ships_is_whole_and_small() -> None:
    files = {file.name: file.stat().st_size for file in path().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {*files}
    assert sum(files.values()) < 8_000_000
