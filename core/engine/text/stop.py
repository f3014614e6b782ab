"""Finding stop strings in a text that arrives in pieces."""

from collections.abc import Sequence


class StopFinder:
    """Lets text through that cannot be part of a stop string any more.

    Which string is found does not depend on how the text was cut into pieces: the one that is
    complete first, and the longest of those that end together.

    Knuth, Morris and Pratt, "Fast Pattern Matching in Strings" (1977): for every stop string, the
    length of its longest beginning that the text ends with; the longest of all is held back.
    """

    def __init__(self, stops: Sequence[str], *, include: bool) -> None:
        self._stops = tuple(sorted(dict.fromkeys(stops), key=len, reverse=True))
        self._include = include  # the found string stays in the text
        self._borders = tuple(_borders(stop) for stop in self._stops)
        self._matched = [0] * len(self._stops)
        self._held = ""

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """(text let through, the stop string that was found).

        With `may_stop` False nothing is found that ends in `text`.
        """
        if not self._stops:
            return text, None
        waiting = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            found = self._advance(character)
            if found is not None and may_stop:
                self._held = ""
                return waiting[: position - (0 if self._include else len(found))], found
        border = len(waiting) - max(self._matched)
        self._held = waiting[border:]
        return waiting[:border], None

    def flush(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        """The longest stop string that ends with this character."""
        found = None
        for number, (stop, borders) in enumerate(zip(self._stops, self._borders, strict=True)):
            matched = self._matched[number]
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            matched += stop[matched] == character
            if matched == len(stop):
                found = found or stop
                matched = borders[-1]
            self._matched[number] = matched
        return found


def _borders(stop: str) -> list[int]:
    """For each beginning of `stop`: the length of its longest own beginning it also ends with."""
    borders = [0]
    matched = 0
    for character in stop[1:]:
        while matched and stop[matched] != character:
            matched = borders[matched - 1]
        matched += stop[matched] == character
        borders.append(matched)
    return borders
