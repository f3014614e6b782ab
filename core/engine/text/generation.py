"""What the deltas of one submission mean for whoever reads its text."""

from dataclasses import dataclass

from engine.batch import Logprobs
from engine.request import Delta, Finish, Submission, Summary
from engine.text.stream import TextPiece, TextStream
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one delta adds to one choice."""

    index: int  # of the choice, from 0 to n-1
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()  # one a token, where asked for
    prompt_logprobs: tuple[Logprobs, ...] = ()  # of the prompt from its second token on; index 0
    finish: Finish | None = None  # in exactly one piece of a choice, its last
    stop: str | int | None = None  # the stop string, or stop token not of the model's own, found
    error: str | None = None  # with Finish.ERROR


class Generation:
    """Turns deltas into pieces, for all `n` choices of a submission.

    Without a tokenizer, pieces have ids and no text.

        async for delta in engine.stream(submission):
            if piece := generation.push(delta):
                show(piece)
            if generation.stopped:
                engine.abort(submission.id)
    """

    def __init__(
        self,
        submission: Submission,
        tokenizer: Tokenizer | None,
        eos_token_ids: tuple[int, ...] = (),
    ) -> None:
        self.num_output = 0  # tokens of all choices, as far as they were shown
        self.summaries: dict[int, Summary] = {}  # the engine's, by index, as they arrive
        self._eos_token_ids = eos_token_ids
        self._open: dict[int, TextStream | None] = {
            index: TextStream(tokenizer, submission.params, submission.prompt)
            if tokenizer
            else None
            for index in range(submission.params.n)
        }
        self._cut: set[int] = set()  # ended by a stop string, unknown to the engine

    @property
    def done(self) -> bool:
        """Every choice had its last piece."""
        return not self._open

    @property
    def stopped(self) -> bool:
        """Done, but the engine still computes: abort the submission."""
        return self.done and bool(self._cut)

    def push(self, delta: Delta) -> Piece | None:
        """The delta's piece; None for what comes after a stop string has ended the choice."""
        if delta.summary is not None:
            self.summaries[delta.index] = delta.summary
        if delta.finish is not None:
            self._cut.discard(delta.index)
        if delta.index not in self._open:
            return None
        stream = self._open[delta.index]
        read = stream.push(delta.tokens, delta.finish) if stream else TextPiece("", delta.tokens)
        finish = delta.finish
        stop: str | int | None = None if delta.stop_id in self._eos_token_ids else delta.stop_id
        if read.stop is not None:
            if finish is None:
                self._cut.add(delta.index)
            finish, stop = Finish.STOP, read.stop
        if finish is not None:
            del self._open[delta.index]
        self.num_output += len(read.token_ids)
        return Piece(
            index=delta.index,
            text=read.text,
            token_ids=read.token_ids,
            logprobs=delta.logprobs[: len(read.token_ids)],
            prompt_logprobs=delta.prompt_logprobs,
            finish=finish,
            stop=stop,
            error=delta.error,
        )
