"""What a request may ask of a vocabulary. Torch-free: the loop calls it at submission."""

from collections.abc import Iterable, Iterator

from engine.errors import RequestError
from engine.params import SamplingParams


def check(params: SamplingParams, vocab_size: int) -> None:
    """Refuse token ids that the model does not have, and bad words without tokens.

    Raises:
        RequestError: `parameter` names the field.
    """
    if any(not sequence for sequence in params.bad_token_ids):
        raise RequestError("bad_token_ids holds an empty sequence", "bad_token_ids")
    for name, ids in _ids(params):
        wrong = next((id for id in ids if not 0 <= id < vocab_size), None)
        if wrong is not None:
            raise RequestError(
                f"{name} holds token id {wrong}; the model's ids go from 0 to {vocab_size - 1}",
                name,
            )


def _ids(params: SamplingParams) -> Iterator[tuple[str, Iterable[int]]]:
    yield "logit_bias", params.logit_bias
    yield "allowed_token_ids", params.allowed_token_ids or ()
    yield "bad_token_ids", (id for sequence in params.bad_token_ids for id in sequence)
    yield "stop_token_ids", params.stop_token_ids
