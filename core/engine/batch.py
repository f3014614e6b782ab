"""What the scheduler hands to the runner, and what it gets back. Plain data that pickles, in
structs that cost little: thousands of them are made in a second.

    tokens of a request   |-- computed before --|-- this slice --|-- later --|
                          0                   start            stop

There is one kind of work: "compute tokens start:stop of a request".
"""

from msgspec import Struct

from engine.params import SamplingParams


class Admission(Struct, frozen=True):
    """What the runner must know of a request before its first slice.

    A request that comes back after a preemption is admitted anew, its output so far in `tokens`.
    """

    key: int
    tokens: tuple[int, ...]
    num_prompt: int  # the rest of `tokens` is output
    params: SamplingParams
    seed: int  # of the counter-based generator, 64 bits unsigned
    stop_ids: tuple[int, ...]  # end of sequence among them; not sampled before `min_tokens`


class Slice(Struct, frozen=True):
    """Tokens `start:stop` of one request, to be computed in this step."""

    key: int
    start: int
    stop: int
    samples: bool  # token stop-1 is the request's last: sample the next one after it
    blocks: tuple[int, ...] = ()  # the block table from entry `blocks_from` on has changed to these
    blocks_from: int = 0


class Batch(Struct, frozen=True):
    """One step. The runner takes the fields in this order.

    A slice may read KV that an earlier slice of the same batch writes (shared prefix): whoever
    runs the slices apart keeps their order.
    """

    released: tuple[int, ...] = ()  # requests whose state the runner may forget
    admitted: tuple[Admission, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()  # (source, target) blocks, copied before the step
    slices: tuple[Slice, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(part.stop - part.start for part in self.slices)


class Logprobs(Struct, frozen=True):
    """Natural-log probabilities at one position: the chosen token's, and the most likely ones."""

    token: int
    logprob: float
    rank: int  # 1: the most likely
    top: tuple[tuple[int, float], ...] = ()  # (token, logprob), most likely first


class SliceOutput(Struct, frozen=True):
    """What one slice brought: nothing, or one or more tokens, or an error of that request alone."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()  # one a token, where asked for
    prompt_logprobs: tuple[Logprobs, ...] = ()  # of prompt tokens start+1 : stop+1, where asked for
    error: str | None = None


class StepOutput(Struct, frozen=True):
    """One `SliceOutput` for every slice, in batch order."""

    slices: tuple[SliceOutput, ...]
