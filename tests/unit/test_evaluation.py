from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.embedded import world
from engine.evaluation import evaluate
from engine.params import SamplingParams


@dataclass
class Text:
    text: str


@dataclass
class Output:
    outputs: Sequence[Text]


class Scholar:
    """Knows the answers, but for those of the kinds it is weak in."""

    def __init__(self, count: int, seed: int, weak_in: str = "") -> None:
        self.calls: list[tuple[int, Any]] = []
        self.params: list[SamplingParams | None] = []
        self._answers = {
            repr((list(question.messages), list(question.tools) or None)): (
                "no idea" if question.kind == weak_in else question.answer
            )
            for question in world.questions(count, seed, split="held_out")
        }

    def chat(
        self, messages: Any, params: SamplingParams | None = None, *, tools: Any = None
    ) -> Sequence[Output]:
        self.calls.append((len(messages), tools))
        self.params.append(params)
        return [Output([Text(self._answers[repr((chat, tools))])]) for chat in messages]


def test_a_model_that_knows_everything_scores_all() -> None:
    report = evaluate(Scholar(300, seed=1), count=300, seed=1)
    assert (report.total.right, report.total.asked) == (300, 300)
    assert report.mistakes == ()
    assert all(score.share == 1 for score in report.scores.values())


def test_wrong_answers_count_against_their_kind_alone_and_are_shown() -> None:
    report = evaluate(Scholar(300, seed=1, weak_in="sort"), count=300, seed=1)
    assert report.scores["sort"].right == 0
    assert report.total.right == 300 - report.scores["sort"].asked
    assert len(report.mistakes) == 20
    assert {(kind, reply) for kind, _, reply in report.mistakes} == {("sort", "no idea")}


def test_questions_are_asked_greedily_and_together_with_those_of_the_same_tools() -> None:
    scholar = Scholar(300, seed=2)
    evaluate(scholar, count=300, seed=2)
    assert all(params is not None and params.greedy for params in scholar.params)
    assert sum(number for number, _ in scholar.calls) == 300
    without_tools = [number for number, tools in scholar.calls if tools is None]
    assert len(without_tools) == 1
    assert without_tools[0] > 150


def test_the_report_is_a_table_and_json() -> None:
    report = evaluate(Scholar(50, seed=3, weak_in="add"), count=50, seed=3)
    lines = report.table().splitlines()
    assert [line.split()[0] for line in lines] == [*report.scores, "all"]
    as_json = report.as_json()
    assert as_json["scores"]["all"]["asked"] == 50
    assert as_json["scores"]["add"]["share"] == 0
    assert (as_json["split"], as_json["seed"]) == ("held_out", 3)


def test_no_right_answer_is_longer_than_the_models_budget_of_characters() -> None:
    """A token is at least a character, so the budget cannot cut a right answer short."""
    from engine.evaluation import MAX_TOKENS

    longest = max(len(q.answer) for q in world.questions(2000, 4, split="held_out"))
    assert longest <= MAX_TOKENS
