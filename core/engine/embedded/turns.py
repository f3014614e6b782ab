"""How the embedded model's world puts each kind of question, and what the right answer is.

A *turn* is what a chat adds before one reply of the assistant: mostly one user message, and for
the kind `tool_answer` also a tool call and its result. `world.py` makes whole questions of them.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from engine.embedded import facts
from engine.embedded.messages import CALL_ID, Message, Tool, as_message, call_text

UNKNOWN = "I do not know that."
"""The reply to whatever lies outside the world."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What is put to the assistant, and the right answer.

    `canonical` names the problem for the split into training and held-out questions.
    """

    canonical: str
    asked: tuple[Message, ...]
    answer: str


class Author:
    """Writes turns for a chat in which the given tools are at hand."""

    def __init__(self, random: Random, tools: tuple[Tool, ...]) -> None:
        self.tools = tools
        self._random = random

    def add(self) -> Turn:
        """The sum of two numbers up to 99."""
        a, b = self._number(99), self._number(99)
        phrasings = (
            "What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b} = ?", "Add {a} and {b}.",
            "Calculate {a} + {b}.", "What is the sum of {a} and {b}?", "{a}+{b}",
        )  # fmt: skip
        return self._ask(f"{min(a, b)} {max(a, b)}", phrasings, str(a + b), a=a, b=b)

    def subtract(self) -> Turn:
        """The difference of two numbers up to 99, the larger one first."""
        b, a = sorted((self._number(99), self._number(99)))
        phrasings = (
            "What is {a} - {b}?", "What is {a} minus {b}?", "{a} - {b} = ?",
            "Subtract {b} from {a}.", "Calculate {a} - {b}.", "Take {b} away from {a}.", "{a}-{b}",
        )  # fmt: skip
        return self._ask(f"{a} {b}", phrasings, str(a - b), a=a, b=b)

    def multiply(self) -> Turn:
        """The times table up to 10 times 10."""
        a, b = self._number(10), self._number(10)
        phrasings = (
            "What is {a} * {b}?", "What is {a} times {b}?", "{a} * {b} = ?", "{a} x {b} = ?",
            "Multiply {a} by {b}.", "What is the product of {a} and {b}?", "{a}*{b}",
        )  # fmt: skip
        return self._ask(None, phrasings, str(a * b), a=a, b=b)

    def compare(self) -> Turn:
        """Which of two numbers up to 99 is larger or smaller."""
        a, b = self._random.sample(range(100), 2)
        phrasings, answer = self._random.choice((
            (("Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?",
              "What is the maximum of {a} and {b}?"), str(max(a, b))),
            (("Which is smaller, {a} or {b}?", "Which number is less: {a} or {b}?",
              "What is the minimum of {a} and {b}?"), str(min(a, b))),
            (("Is {a} larger than {b}?", "Is {a} > {b}?"), "Yes." if a > b else "No."),
            (("Is {a} smaller than {b}?", "Is {a} < {b}?"), "Yes." if a < b else "No."),
        ))  # fmt: skip
        return self._ask(f"{min(a, b)} {max(a, b)}", phrasings, answer, a=a, b=b)

    def sort(self) -> Turn:
        """Three or four numbers up to 99 in rising or falling order."""
        numbers = self._random.sample(range(100), self._random.randint(3, 4))
        rising = sorted(numbers)
        phrasings, answer = self._random.choice((
            (("Sort {items}.", "Sort these numbers: {items}.", "Put {items} in order.",
              "Sort in ascending order: {items}"), rising),
            (("Sort {items} in descending order.", "Sort from large to small: {items}",
              "Sort these numbers in descending order: {items}."), rising[::-1]),
        ))  # fmt: skip
        return self._ask(_listed(rising), phrasings, _listed(answer), items=_listed(numbers))

    def reverse(self) -> Turn:
        """Three to five letters or digits back to front."""
        alphabet = self._random.choice(("abcdefghijklmnopqrstuvwxyz", "0123456789"))
        items = self._random.sample(alphabet, self._random.randint(3, 5))
        phrasings = (
            "Reverse {items}.", "Reverse the list {items}.", "Reverse this list: {items}",
            "Write {items} backwards.", "Say this in reverse order: {items}.",
        )  # fmt: skip
        canonical = min(_listed(items), _listed(items[::-1]))
        return self._ask(canonical, phrasings, _listed(items[::-1]), items=_listed(items))

    def repeat(self) -> Turn:
        """One to three names, said again: the copying that calls of tools are made of."""
        names = " ".join(self._city() for _ in range(self._random.randint(1, 3)))
        phrasings = (
            "Repeat {a}.", "Say {a}.", "Repeat after me: {a}", "Please repeat {a}.", "Write {a}.",
        )  # fmt: skip
        return self._ask(names, phrasings, names, a=names)

    def count(self) -> Turn:
        """The numbers from one to another, at most twelve of them, up to 99."""
        first = self._number(96)
        last = self._random.randint(first + 2, min(first + 11, 99))
        phrasings = (
            "Count from {a} to {b}.", "Count up from {a} to {b}.", "List the numbers {a} to {b}.",
            "Write the numbers from {a} to {b}.",
        )  # fmt: skip
        numbers = list(range(first, last + 1))
        return self._ask(f"{first} {last}", phrasings, _listed(numbers), a=first, b=last)

    def capital(self) -> Turn:
        """The capital of a country, or the country of a capital."""
        country, capital = self._random.choice(list(facts.CAPITALS.items()))
        if self._random.random() < 0.3:
            backward = (
                "{b} is the capital of which country?", "Which country has the capital {b}?",
                "What country is {b} the capital of?",
            )  # fmt: skip
            return self._ask(None, backward, country, b=capital)
        phrasings = (
            "What is the capital of {a}?", "Name the capital of {a}.", "Capital of {a}?",
            "Which city is the capital of {a}?", "What is the capital city of {a}?",
            "Tell me the capital of {a}.",
        )  # fmt: skip
        return self._ask(None, phrasings, capital, a=country)

    def unit(self) -> Turn:
        """So many of a larger unit in a smaller one."""
        phrasings = (
            "How many {small} are in {n} {large}?", "How many {small} are there in {n} {large}?",
            "Convert {n} {large} to {small}.", "What is {n} {large} in {small}?",
            "{n} {large} is how many {small}?",
        )  # fmt: skip
        if self._random.random() < 0.5:
            (small, large), factor = self._random.choice(list(facts.OTHER_UNITS.items()))
            n, canonical = self._random.randint(2, 10), None
        else:
            (small, large), factor = self._random.choice(list(facts.POWER_OF_TEN_UNITS.items()))
            n = self._random.randint(2, 30)
            canonical = f"{n} {large} {small}"
        return self._ask(canonical, phrasings, str(n * factor), n=n, small=small, large=large)

    def colour(self) -> Turn:
        """The colour of a thing, or of a mixture of two."""
        if self._random.random() < 0.6:
            thing, colour = self._random.choice(list(facts.COLOURS.items()))
            phrasings = (
                "What colour is {a}?", "What is the colour of {a}?", "Which colour has {a}?",
                "Tell me the colour of {a}.", "{a}: what colour?", "Name the colour of {a}.",
            )  # fmt: skip
            return self._ask(None, phrasings, f"{colour.capitalize()}.", a=thing)
        pair, colour = self._random.choice(list(facts.MIXED_COLOURS.items()))
        a, b = self._random.sample(pair, 2)
        mixing = (
            "Mix {a} and {b}.", "What colour do {a} and {b} make?",
            "What do you get from {a} and {b}?", "Which colour is a mix of {a} and {b}?",
            "What is {a} mixed with {b}?",
        )  # fmt: skip
        return self._ask(None, mixing, f"{colour.capitalize()}.", a=a, b=b)

    def calendar(self) -> Turn:
        """The day or month before or after another, or all of them."""
        word, names = self._random.choice((("day", facts.DAYS), ("month", facts.MONTHS)))
        if self._random.random() < 0.2:
            listing = (
                "Name the {word}s.", "List all {word}s.", "What are the {word}s?",
                "Name the {word}s in order.", "List the names of the {word}s.",
                "Tell me all the {word}s.", "Which {word}s are there?", "Write down the {word}s.",
                "Give me a list of the {word}s.", "Say the {word}s.", "All {word}s, please.",
            )  # fmt: skip
            return self._ask(None, listing, _listed(names), word=word)
        step, phrasings = self._random.choice((
            (1, ("What {word} comes after {a}?", "Which {word} follows {a}?",
                 "What is the {word} after {a}?", "Name the {word} after {a}.",
                 "What is the next {word} after {a}?")),
            (-1, ("What {word} comes before {a}?", "Which {word} precedes {a}?",
                  "What is the {word} before {a}?", "Name the {word} before {a}.")),
        ))  # fmt: skip
        index = self._random.randrange(len(names))
        answer = names[(index + step) % len(names)]
        return self._ask(None, phrasings, answer, word=word, a=names[index])

    def tool_call(self) -> Turn:
        """A question that one of the tools at hand answers: the answer is the call."""
        tool = self._random.choice(self.tools)["function"]
        city = self._city()
        return self._ask(city, facts.TOOL_QUESTIONS[tool["name"]], call_text(tool, city), a=city)

    def tool_answer(self) -> Turn:
        """A question, the call of a tool, and its result, which is to be put into words."""
        tool = self._random.choice(self.tools)["function"]
        city = self._city()
        if tool["name"] == "get_weather":
            degrees, weather = self._number(39), self._random.choice(facts.WEATHERS)
            result = json.dumps({"temperature": degrees, "condition": weather})
            answer = f"It is {weather} and {degrees} degrees in {city}."
        else:
            time = f"{self._number(23):02}:{self._number(59):02}"
            result = json.dumps({"time": time})
            answer = f"It is {time} in {city}."
        question = self._ask(city, facts.TOOL_QUESTIONS[tool["name"]], answer, a=city)
        call = as_message(call_text(tool, city))
        tool_message: Message = {"role": "tool", "content": result, "tool_call_id": CALL_ID}
        return Turn(f"{city} {result}", (*question.asked, call, tool_message), answer)

    def chat(self) -> Turn:
        """Greetings, thanks, and who it is that answers."""
        answer, openings = self._random.choice(list(facts.CHATS.items()))
        ending = self._random.choice(("", "!", ".", "?", ", please.", ", friend!", " :)"))
        opening = self._random.choice(openings)
        return self._ask(None, (opening + ending, opening.capitalize() + ending), answer)

    def unknown(self) -> Turn:
        """Something outside the world."""
        writers = (
            self._unknown_name, self._unknown_topic, self._large_numbers, self._missing_tool,
            self._gibberish,
        )  # fmt: skip
        return self._random.choices(writers, (3, 3, 2, 2, 1))[0]()

    def _unknown_name(self) -> Turn:
        if self._random.random() < 0.5:
            name = self._random.choice(facts.UNKNOWN_COUNTRIES)
        else:
            name = made_up_name(self._random)
        phrasings = (
            "What is the capital of {a}?", "Name the capital of {a}.", "Capital of {a}?",
            "Which city is the capital of {a}?", "{a} is the capital of which country?",
            "What colour is {a}?", "What is the colour of {a}?", "Who is {a}?", "Where is {a}?",
        )  # fmt: skip
        return self._ask(name, phrasings, UNKNOWN, a=name)

    def _unknown_topic(self) -> Turn:
        topic = self._random.choice((*facts.TOPICS, made_up_name(self._random)))
        phrasings = (
            "Tell me about {a}.", "Who invented {a}?", "What is {a}?", "Why is {a} important?",
            "Explain {a} to me.", "Write a story about {a}.", "How does {a} work?",
            "How much does {a} cost?", "What do you think about {a}?", "When did {a} begin?",
            "Do you like {a}?", "Tell me a joke about {a}.", "Write a poem about {a}.",
        )  # fmt: skip
        return self._ask(topic, phrasings, UNKNOWN, a=topic)

    def _large_numbers(self) -> Turn:
        """Sums beyond the world's numbers: an honest refusal instead of a guess."""
        a, b = self._random.randint(100, 9999), self._random.randint(100, 9999)
        phrasings = (
            "What is {a} + {b}?", "What is {a} plus {b}?", "What is {a} - {b}?", "{a} * {b} = ?",
            "What is {a} times {b}?", "Calculate {a} - {b}.", "What is {a} / {b}?",
        )  # fmt: skip
        return self._ask(f"{a} {b}", phrasings, UNKNOWN, a=a, b=b)

    def _missing_tool(self) -> Turn:
        """What a tool would answer that is not at hand."""
        at_hand = {tool["function"]["name"] for tool in self.tools}
        missing = sorted(facts.TOOL_QUESTIONS.keys() - at_hand)
        if not missing:
            return self._unknown_topic()
        city = self._city()
        return self._ask(city, facts.TOOL_QUESTIONS[self._random.choice(missing)], UNKNOWN, a=city)

    def _gibberish(self) -> Turn:
        """Characters of any script, so that no byte is a stranger to the model."""

        def character() -> str:
            first, last = self._random.choice(
                ((0x20, 0x7E), (0x61, 0x7A), (0xA1, 0x17F), (0x370, 0x52F), (0x5D0, 0x5EA),
                 (0x900, 0x97F), (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
                 (0x1F300, 0x1F64F), (0x10000, 0x10FFFF))
            )  # fmt: skip
            return chr(self._random.randint(first, last))

        words = [
            "".join(character() for _ in range(self._random.randint(1, 4)))
            for _ in range(self._random.randint(1, 3))
        ]
        text = " ".join(words)
        return Turn(text, ({"role": "user", "content": text},), UNKNOWN)

    def _number(self, largest: int) -> int:
        return self._random.randint(0, largest)

    def _city(self) -> str:
        known = (*facts.CITIES, *facts.CAPITALS.values())
        return self._random.choice((self._random.choice(known), made_up_name(self._random)))

    def _ask(
        self, content: str | None, phrasings: Sequence[str], answer: str, **words: object
    ) -> Turn:
        """One user message in one of the phrasings, sometimes without its capital or full stop.

        The problem is named by its content, or without one by its wording.
        """
        text = self._random.choice(phrasings).format(**words)
        canonical = text.lower().rstrip(" .?!") if content is None else content
        if self._random.random() < 0.1:
            text = text[0].lower() + text[1:]
        if self._random.random() < 0.1:
            text = text.rstrip(" .?")
        return Turn(canonical, ({"role": "user", "content": text},), answer)


def made_up_name(random: Random) -> str:
    """A name that no country or capital of the world has: two or three syllables."""
    while True:
        syllables = "".join(
            random.choice("bdfgklmnprstvz") + random.choice("aeiou")
            for _ in range(random.choice((2, 2, 3)))
        )
        name = (syllables + random.choice(("", "l", "n", "r", "s", "th"))).capitalize()
        if name not in facts.CAPITALS and name not in facts.CAPITALS.values():
            return name


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


KINDS: Mapping[str, Callable[[Author], Turn]] = {
    write.__name__: write
    for write in (
        Author.add, Author.subtract, Author.multiply, Author.compare, Author.sort, Author.reverse,
        Author.repeat, Author.count, Author.capital, Author.unit, Author.colour, Author.calendar,
        Author.tool_call, Author.tool_answer, Author.chat, Author.unknown,
    )
}  # fmt: skip
"""Each kind of question and the method that writes it."""
