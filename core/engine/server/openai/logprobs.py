"""Log-probabilities in the three ways the API writes them."""

from collections.abc import Iterable, Sequence
from typing import Final

from engine.batch import Logprobs
from engine.server.openai.responses import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from engine.text import Tokenizer

#: JSON has no infinity: what is impossible is shown as this, as the API does.
LEAST: Final = -9999.0


class TokenNames:
    """How tokens are written in an answer: as text, or as "token_id:N" where that was asked for."""

    def __init__(self, tokenizer: Tokenizer | None, *, as_ids: bool) -> None:
        self._tokenizer = None if as_ids else tokenizer

    def text(self, token: int) -> str:
        return f"token_id:{token}" if self._tokenizer is None else self._tokenizer.token_text(token)

    def bytes(self, token: int) -> list[int]:
        if self._tokenizer is None:
            return list(self.text(token).encode())
        return list(self._tokenizer.token_bytes(token))


def chat_logprobs(entries: Iterable[Logprobs], count: int, names: TokenNames) -> ChatLogprobs:
    """One entry a token, each with its `count` most likely alternatives."""
    return ChatLogprobs(
        [
            TokenLogprob(
                names.text(entry.token),
                _finite(entry.logprob),
                names.bytes(entry.token),
                [
                    TopLogprob(names.text(token), _finite(logprob), names.bytes(token))
                    for token, logprob in entry.top[:count]
                ],
            )
            for entry in entries
        ]
    )


class CompletionLogprobsWriter:
    """Parallel lists of one choice. Remembers where its text has come to, for `text_offset`."""

    def __init__(self, count: int, names: TokenNames) -> None:
        self._count = count
        self._names = names
        self._offset = 0

    def prompt(self, tokens: Sequence[int], entries: Sequence[Logprobs]) -> CompletionLogprobs:
        """Of an echoed prompt. Its first token has no probability: nothing comes before it."""
        found = CompletionLogprobs([], [], [], [])
        self._add(found, tokens[0], None, None)
        for entry in entries:
            self._add(found, entry.token, _finite(entry.logprob), self._top(entry))
        return found

    def output(self, entries: Iterable[Logprobs]) -> CompletionLogprobs:
        found = CompletionLogprobs([], [], [], [])
        for entry in entries:
            self._add(found, entry.token, _finite(entry.logprob), self._top(entry))
        return found

    def _add(
        self,
        found: CompletionLogprobs,
        token: int,
        logprob: float | None,
        top: dict[str, float] | None,
    ) -> None:
        text = self._names.text(token)
        found.tokens.append(text)
        found.token_logprobs.append(logprob)
        found.top_logprobs.append(top)
        found.text_offset.append(self._offset)
        self._offset += len(text)

    def _top(self, entry: Logprobs) -> dict[str, float]:
        """The most likely tokens, and the chosen one. Of two that read the same the likelier."""
        found: dict[str, float] = {}
        for token, logprob in (*entry.top[: self._count], (entry.token, entry.logprob)):
            found.setdefault(self._names.text(token), _finite(logprob))
        return found


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        first.top_logprobs + second.top_logprobs,
        first.text_offset + second.text_offset,
    )


def prompt_logprobs(entries: Sequence[Logprobs], names: TokenNames) -> PromptLogprobs:
    """vLLM's form: over prompt positions, by token id. Null at the first."""
    return [None, *(_candidates(entry, names) for entry in entries)]


def _candidates(entry: Logprobs, names: TokenNames) -> dict[str, PromptLogprob]:
    found = {
        str(token): PromptLogprob(_finite(logprob), rank, names.text(token))
        for rank, (token, logprob) in enumerate(entry.top, start=1)
    }
    chosen = PromptLogprob(_finite(entry.logprob), entry.rank, names.text(entry.token))
    return {str(entry.token): chosen} | found


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)
