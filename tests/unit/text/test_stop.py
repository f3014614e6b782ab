from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.text.stop import StopFinder

texts = st.text(alphabet="ab.", max_size=30)
stops = st.lists(st.text(alphabet="ab.", min_size=1, max_size=5), min_size=1, max_size=4)


def search(text: str, strings: list[str], include: bool) -> tuple[str, str | None]:
    """By definition: the string that is complete first; of those, the longest."""
    for end in range(1, len(text) + 1):
        for stop in sorted(strings, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


@given(texts, stops, st.lists(st.integers(0, 30)), st.booleans())
def test_it_finds_what_a_search_of_the_whole_text_finds(
    text: str, strings: list[str], cuts: list[int], include: bool
) -> None:
    finder = StopFinder(strings, include=include)
    borders = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    given_out, found = "", None
    for start, stop in pairwise(borders):
        shown, found = finder.push(text[start:stop])
        given_out += shown
        if found is not None:
            break
    else:
        given_out += finder.flush()
    assert (given_out, found) == search(text, strings, include)


@given(texts, stops)
def test_it_holds_back_no_more_than_it_must(text: str, strings: list[str]) -> None:
    finder = StopFinder(strings, include=False)
    given_out = ""
    for end, character in enumerate(text, start=1):
        shown, found = finder.push(character)
        if found is not None:
            return
        given_out += shown
        held = text[len(given_out) : end]
        beginnings = {stop[:length] for stop in strings for length in range(len(stop))}
        assert held == max((b for b in beginnings if text[:end].endswith(b)), key=len)


def test_a_string_that_may_not_be_found_yet_passes_whole() -> None:
    finder = StopFinder(["ab"], include=False)
    assert finder.push("xaby", may_stop=False) == ("xaby", None)
    assert finder.push("a", may_stop=False) == ("", None)
    assert finder.push("b.") == ("", "ab")


def test_a_very_long_stop_string_costs_no_more_than_a_short_one() -> None:
    finder = StopFinder(["a" * 50_000 + "b"], include=False)
    shown = "".join(finder.push("a" * 10)[0] for _ in range(10_000))
    assert shown == "a" * 50_000
    assert finder.push("b") == ("", "a" * 50_000 + "b")


def test_without_stop_strings_all_text_passes() -> None:
    finder = StopFinder([], include=False)
    assert finder.push("abc") == ("abc", None)
    assert finder.flush() == ""
