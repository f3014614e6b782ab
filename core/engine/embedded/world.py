"""The closed world of the embedded model: its questions, their answers, and the checker.

A question is a chat whose last reply is still to be given; for each there is exactly one right
reply. Standard library only, so that a load generator or a test can draw and check questions
without a model at hand.

Training and held-out questions are disjoint: a stable hash (SHA-256) of the problem's canonical
form puts about one in ten on the held-out side. What the canonical form is depends on what can
be learned:

    by content     add, subtract, compare, sort, reverse, repeat, count, tool_call, tool_answer,
                   unknown, and unit where the factor is a power of ten: the operands, the list
                   or the name itself. No question of that kind in training has it, in any
                   phrasing, nor its mirror image (3 + 4 for 4 + 3, a list in another order or
                   direction).
    by phrasing    multiply (the times table), capital, colour, calendar, chat, and unit where the
                   factor is 7, 12, 24 or 60: facts which can only be remembered. The fact was
                   seen in training, but never in this phrasing.

So a held-out score says something about calculating for the first group, and only about
understanding other wordings for the second.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Literal

from engine.embedded import facts
from engine.embedded.messages import Message, Tool, as_message, called, city_tool
from engine.embedded.turns import KINDS, Author, Turn, made_up_name

Split = Literal["train", "held_out"]
"""The questions to learn from, or those kept back to be asked afterwards."""

WEIGHTS: Mapping[str, int] = {
    "add": 16, "subtract": 18, "multiply": 6, "compare": 8, "sort": 16, "reverse": 6, "repeat": 5,
    "count": 5, "capital": 5, "unit": 5, "colour": 2, "calendar": 2, "tool_call": 4,
    "tool_answer": 3, "chat": 1, "unknown": 5,
}  # fmt: skip
"""Each kind of question and how often it is drawn: hard ones more often."""

WEATHER = city_tool("get_weather", "Get the weather in a city.")
TIME = city_tool("get_time", "Get the time in a city.")


@dataclass(frozen=True, slots=True)
class Question:
    """A chat that waits for its last reply, and the reply which is right."""

    kind: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Score:
    """How many questions of a kind were asked, and how many replies were right."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        """Right replies as a share of those asked for, between 0 and 1."""
        return self.right / self.asked


def questions(
    count: int, seed: int, split: Split = "train", kinds: Collection[str] = ()
) -> Iterator[Question]:
    """Draw `count` questions of the given split and kinds (none given: all, hard ones more often).

    The same arguments give the same questions. Some chats have a system message, tools, or
    earlier turns; earlier turns always come from the training split.

    Raises:
        ValueError: for a kind that the world does not have.
    """
    unheard_of = set(kinds) - set(KINDS)
    if unheard_of:
        raise ValueError(f"no such kinds: {sorted(unheard_of)}; the world has {sorted(KINDS)}")
    return islice(_endless(Random(seed), split, sorted(kinds) or list(KINDS)), count)


def is_right(question: Question, reply: str) -> bool:
    """Whether the reply is the right one: the same text, or for a tool call the same JSON."""
    expected = called(question.answer)
    if expected is not None:
        return called(reply) == expected
    return reply.strip() == question.answer


def score(pairs: Iterable[tuple[Question, str]]) -> dict[str, Score]:
    """Count right replies per kind, kinds in alphabetical order."""
    marks: dict[str, list[bool]] = {}
    for question, reply in pairs:
        marks.setdefault(question.kind, []).append(is_right(question, reply))
    return {kind: Score(sum(marks[kind]), len(marks[kind])) for kind in sorted(marks)}


def _endless(random: Random, split: Split, kinds: Sequence[str]) -> Iterator[Question]:
    while True:
        kind = _some_kind(random, kinds)
        tools = _tools(random, kind)
        author = Author(random, tools)
        messages = _system(random)
        for _ in range(random.choices((0, 1, 2, 3, 4, 5), (75, 12, 6, 4, 2, 1))[0]):
            earlier = [name for name in KINDS if tools or name not in _ABOUT_TOOLS]
            turn = _turn(author, _some_kind(random, earlier), "train")
            messages += [*turn.asked, as_message(turn.answer)]
        last = _turn(author, kind, split)
        yield Question(kind, (*messages, *last.asked), tools, last.answer)


_ABOUT_TOOLS = ("tool_call", "tool_answer")


def _some_kind(random: Random, kinds: Sequence[str]) -> str:
    return random.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]


def _tools(random: Random, kind: str) -> tuple[Tool, ...]:
    """The tools of a chat; where the question is about a tool, there is at least one."""
    if kind not in _ABOUT_TOOLS and random.random() < 0.98:
        return ()
    tools = [WEATHER, TIME]
    if random.random() < 0.6:
        parameter = random.choice(("city", "city", "location", "place"))
        tools = [
            city_tool(name, random.choice(descriptions), parameter)
            for name, descriptions in facts.TOOL_DESCRIPTIONS.items()
        ]
    random.shuffle(tools)
    return tuple(tools[: random.choice((1, 2))])


def _system(random: Random) -> list[Message]:
    if random.random() < 0.85:
        return []
    text = random.choice(facts.SYSTEM_SENTENCES).format(name=made_up_name(random))
    return [{"role": "system", "content": text}]


def _turn(author: Author, kind: str, split: Split) -> Turn:
    """A turn of the kind that belongs to the split."""
    while True:
        turn = KINDS[kind](author)
        if _split_of(f"{kind}|{turn.canonical}") == split:
            return turn


def _split_of(canonical: str) -> Split:
    digest = hashlib.sha256(canonical.encode()).digest()
    return "held_out" if int.from_bytes(digest[:4], "big") % 10 == 0 else "train"
