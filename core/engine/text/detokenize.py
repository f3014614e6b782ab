"""Token ids to text, bit by bit. Joined, the bits are what decoding all ids at once gives.

What a token adds to a text depends on its neighbours: a character's bytes may lie in several
tokens, and some decoders drop a space at the start. So text is given out only when no later
token can change it.
"""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Sequence

from engine.text.token_bytes import ByteTable
from engine.text.tokenizer import Tokenizer

#: As many tokens of the prompt are looked at: more than any character's bytes.
CONTEXT_TOKENS = 16

#: Undecodable text is held back for as many tokens, in the hope that it becomes decodable.
PATIENCE_TOKENS = 16

REPLACEMENT = "\ufffd"


class Detokenizer(ABC):
    """One running text."""

    @abstractmethod
    def push(self, id: int) -> str:
        """The text that is certain now and was not before."""

    @abstractmethod
    def flush(self) -> str:
        """What was held back, at the end. Push nothing afterwards."""


def detokenizer(
    tokenizer: Tokenizer, *, context: Sequence[int] = (), skip_special_tokens: bool = True
) -> Detokenizer:
    """A running text after the ids of `context`, whose own text is not given out."""
    skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
    context = [id for id in context if id not in skipped][-CONTEXT_TOKENS:]
    if tokenizer.bytes_of is not None:
        return ByteDetokenizer(tokenizer.bytes_of, skipped, context)
    return WindowDetokenizer(tokenizer, skipped, context)


class ByteDetokenizer(Detokenizer):
    """For tokens that are bytes: the text is the decoding of the joined bytes."""

    def __init__(
        self, bytes_of: ByteTable, skipped: frozenset[int], context: Sequence[int]
    ) -> None:
        self._bytes_of = bytes_of
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for id in context:
            self._decoder.decode(bytes_of[id])

    def push(self, id: int) -> str:
        return "" if id in self._skipped else self._decoder.decode(self._bytes_of[id])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer(Detokenizer):
    """For every other decoder: decode a window of the last tokens, and subtract what was shown.

        ids   … | anchor | held |        text given out so far ends with the anchor's
                |---- window ---|

    The anchor's own text may come out wrong (a dropped space), but equally so in both terms of the
    difference. Byte tokens are held back until another kind follows: decoders judge a whole run of
    them, and an invalid byte at its end spoils the run's beginning.
    """

    def __init__(
        self, tokenizer: Tokenizer, skipped: frozenset[int], context: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._window = list(context)
        self._num_anchor = len(self._window)
        # A character that the prompt left unfinished is given out whole, once it is complete.
        self._shown = self._decode(self._window).rstrip(REPLACEMENT)

    def push(self, id: int) -> str:
        if id in self._skipped or not self._tokenizer.token_bytes(id):
            return ""
        self._window.append(id)
        if id in self._tokenizer.byte_ids:
            return ""
        text = self._decode(self._window)
        num_held = len(self._window) - self._num_anchor
        decodes_runs = bool(self._tokenizer.byte_ids)  # then a run has ended here, for good or ill
        if text.endswith(REPLACEMENT) and not decodes_runs and num_held < PATIENCE_TOKENS:
            return ""
        new = self._new(text)
        self._move()
        return new

    def flush(self) -> str:
        return self._new(self._decode(self._window))

    def _new(self, text: str) -> str:
        return text[len(self._shown) :]

    def _move(self) -> None:
        """What was held becomes the anchor, which must have text to be one: spaces alone may not
        have any at the start, but do after another token.
        """
        num_held = len(self._window) - self._num_anchor
        for size in (num_held, num_held + 1):
            anchor = self._window[-size:]
            if text := self._decode(anchor):
                self._window, self._shown = anchor, text
                break
        else:
            self._shown = self._decode(self._window)
        self._num_anchor = len(self._window)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)
