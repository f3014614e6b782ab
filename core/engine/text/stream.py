"""One continuation's text, from the tokens as they arrive."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.params import SamplingParams
from engine.request import Finish
from engine.text.detokenize import detokenizer
from engine.text.stop import StopFinder
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextPiece:
    """What some tokens added."""

    text: str  # ready to be shown: no half character, nothing that may become a stop string
    token_ids: tuple[int, ...]  # those pushed, up to the one that completed a stop string
    stop: str | None = None  # the stop string that was found: push nothing more, abort the request


class TextStream:
    """Detokenizes and looks for stop strings, in time linear in the tokens.

    The pieces' texts, joined, are what `Tokenizer.decode` makes of the tokens, up to a stop
    string. After a prompt of text, they are what the tokens add to that text: a space at the start
    is kept. What counts is the prompt after its last special token, so that an answer in a chat
    starts like a text of its own.
    """

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, prompt_ids: Sequence[int] = ()
    ) -> None:
        self._detokenizer = detokenizer(
            tokenizer,
            context=_after_last_special(prompt_ids, tokenizer.special_ids),
            skip_special_tokens=params.skip_special_tokens,
        )
        self._include = params.include_stop_str_in_output
        self._stops = StopFinder(params.stop, include=self._include)
        self._min_tokens = params.min_tokens
        self._num_tokens = 0

    def push(self, tokens: Sequence[int], finish: Finish | None = None) -> TextPiece:
        """Take the next tokens. With `finish`, everything held back is given out.

        With `Finish.STOP` the last token is the one that ended the request: its text is left out,
        as a stop string's is, unless `include_stop_str_in_output`.
        """
        shown = []
        silent = len(tokens) - 1 if finish is Finish.STOP and not self._include else len(tokens)
        for position, token in enumerate(tokens):
            self._num_tokens += 1
            text = self._detokenizer.push(token) if position < silent else ""
            text, stop = self._stops.push(text, may_stop=self._num_tokens > self._min_tokens)
            shown.append(text)
            if stop is not None:
                return TextPiece("".join(shown), tuple(tokens[: position + 1]), stop)
        if finish is None:
            return TextPiece("".join(shown), tuple(tokens))
        may_stop = self._num_tokens > self._min_tokens
        text, stop = self._stops.push(self._detokenizer.flush(), may_stop=may_stop)
        shown.append(text)
        if stop is None:
            shown.append(self._stops.flush())
        return TextPiece("".join(shown), tuple(tokens), stop)


def _after_last_special(ids: Sequence[int], special_ids: frozenset[int]) -> Sequence[int]:
    for position in range(len(ids) - 1, -1, -1):
        if ids[position] in special_ids:
            return ids[position + 1 :]
    return ids
