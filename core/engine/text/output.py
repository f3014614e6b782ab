"""A finished request, for those who want it whole."""

from dataclasses import dataclass, field

from engine.batch import Logprobs
from engine.request import Delta, Finish, Submission
from engine.text.generation import Generation, Piece
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One continuation."""

    index: int
    text: str  # "" for a model without tokenizer
    token_ids: tuple[int, ...]
    finish_reason: str  # "stop", "length", "abort" or "error"
    stop_reason: str | int | None = None  # the stop string, or stop token of the request's own
    logprobs: tuple[Logprobs, ...] | None = None  # one a token, where asked for
    cumulative_logprob: float | None = None  # of all tokens, where logprobs were asked for
    error: str | None = None  # with "error": what went wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """One prompt and its `n` continuations."""

    request_id: str
    prompt: str | None  # None: it was given as token ids
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    #: One a prompt token, where asked for; nothing precedes the first, so it has none.
    prompt_logprobs: tuple[Logprobs | None, ...] | None = None
    num_cached_tokens: int = 0  # of the prompt, found in the prefix cache


class OutputBuilder:
    """Collects a submission's deltas; `prompt` is its text, where there was one."""

    def __init__(
        self,
        submission: Submission,
        tokenizer: Tokenizer | None,
        eos_token_ids: tuple[int, ...] = (),
        *,
        prompt: str | None = None,
    ) -> None:
        self.submission = submission
        self.generation = Generation(submission, tokenizer, eos_token_ids)
        self._prompt = prompt
        self._prompt_logprobs: list[Logprobs | None] = [None]
        self._choices = [_Choice() for _ in range(submission.params.n)]

    def push(self, delta: Delta) -> None:
        if (piece := self.generation.push(delta)) is not None:
            self._prompt_logprobs += piece.prompt_logprobs
            self._choices[piece.index].add(piece)

    def result(self) -> RequestOutput:
        """The output, once `generation.done`."""
        params = self.submission.params
        summaries = self.generation.summaries
        wants_prompt = params.prompt_logprobs is not None
        return RequestOutput(
            request_id=self.submission.id,
            prompt=self._prompt,
            prompt_token_ids=self.submission.prompt,
            outputs=tuple(
                choice.output(index, with_logprobs=params.logprobs is not None)
                for index, choice in enumerate(self._choices)
            ),
            prompt_logprobs=tuple(self._prompt_logprobs) if wants_prompt else None,
            # The first choice's: the others find what the first has just computed.
            num_cached_tokens=summaries[0].num_cached if 0 in summaries else 0,
        )


@dataclass(slots=True)
class _Choice:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    last: Piece | None = None

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs
        self.last = piece

    def output(self, index: int, *, with_logprobs: bool) -> CompletionOutput:
        last = self.last or Piece(index=index)
        return CompletionOutput(
            index=index,
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            finish_reason=(last.finish or Finish.ABORT).value,
            stop_reason=last.stop,
            logprobs=tuple(self.logprobs) if with_logprobs else None,
            cumulative_logprob=sum(p.logprob for p in self.logprobs) if with_logprobs else None,
            error=last.error,
        )
