"""Asks a model the questions of the embedded model's closed world, and counts exact answers.

A check of everything that may cost quality: another device, another dtype, a new platform.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from engine.embedded import world
from engine.params import SamplingParams

#: No right answer is longer.
MAX_TOKENS = 96


class Answer(Protocol):
    @property
    def text(self) -> str: ...


class Output(Protocol):
    @property
    def outputs(self) -> Sequence[Answer]: ...


class Model(Protocol):
    """What is asked: `engine.LLM`, or anything that answers like it."""

    def chat(
        self, messages: Any, params: SamplingParams | None = None, *, tools: Any = None
    ) -> Sequence[Output]: ...


@dataclass(frozen=True, slots=True)
class Report:
    """Scores by kind of question, and some of the questions that were answered wrongly."""

    scores: dict[str, world.Score]
    mistakes: tuple[tuple[str, str, str], ...]  # (kind, right answer, the model's)
    seed: int

    @property
    def total(self) -> world.Score:
        parts = self.scores.values()
        return world.Score(sum(part.right for part in parts), sum(part.asked for part in parts))

    def table(self) -> str:
        """Lines of text, one a kind and one for all."""
        rows = [*self.scores.items(), ("all", self.total)]
        return "\n".join(
            f"{kind:12} {score.right:6} of {score.asked:6}  {score.share:7.2%}"
            for kind, score in rows
        )

    def as_json(self) -> dict[str, Any]:
        scores = {
            kind: {"right": score.right, "asked": score.asked, "share": score.share}
            for kind, score in [*self.scores.items(), ("all", self.total)]
        }
        return {"split": "held_out", "seed": self.seed, "scores": scores, "mistakes": self.mistakes}


def evaluate(llm: Model, *, count: int, seed: int, num_mistakes: int = 20) -> Report:
    """Ask `count` held-out questions, greedily; the same seed asks the same ones.

    Raises:
        RequestError: the model cannot chat.
    """
    questions = list(world.questions(count, seed, split="held_out"))
    replies = _ask(llm, questions)
    pairs = list(zip(questions, replies, strict=True))
    wrong = [pair for pair in pairs if not world.is_right(*pair)]
    mistakes = tuple((asked.kind, asked.answer, reply) for asked, reply in wrong[:num_mistakes])
    return Report(world.score(pairs), mistakes, seed)


def _ask(llm: Model, questions: Sequence[world.Question]) -> list[str]:
    """Replies in the order of the questions. Those with the same tools are asked together."""
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    replies = [""] * len(questions)
    order = sorted(range(len(questions)), key=lambda at: repr(questions[at].tools))
    for _, together in groupby(order, key=lambda at: repr(questions[at].tools)):
        group = list(together)
        chats = [list(questions[at].messages) for at in group]
        tools = list(questions[group[0]].tools) or None
        for at, output in zip(group, llm.chat(chats, params, tools=tools), strict=True):
            replies[at] = output.outputs[0].text
    return replies
