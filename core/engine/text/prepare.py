"""From what a user asks to what the engine takes."""

import uuid
from collections.abc import Sequence
from dataclasses import replace

from engine.errors import RequestError
from engine.facts import EngineFacts
from engine.params import SamplingParams
from engine.request import Submission
from engine.sampling import check
from engine.text.tokenizer import Tokenizer

#: A token covers at most a few dozen bytes, so what is much longer need not be tokenized to be
#: refused.
MAX_CHARACTERS_PER_TOKEN = 128


def prepare(
    prompt: str | Sequence[int],
    params: SamplingParams,
    *,
    facts: EngineFacts,
    tokenizer: Tokenizer | None,
    id: str | None = None,
    priority: int = 0,
    cache_salt: str = "",
    add_special_tokens: bool = True,
) -> Submission:
    """Check a prompt, as text or token ids, against the model, and make a submission of it.

    `params.max_tokens` must fit the context together with the prompt: it is not clamped. `id`:
    None makes a random one. `add_special_tokens` concerns text.

    Raises:
        RequestError: the prompt is empty, or does not fit the context; an id is not in the
            vocabulary; text, stop strings or bad words for a model without tokenizer.
            `parameter` names the field.
    """
    if isinstance(prompt, str):
        ids = _encode(prompt, facts, tokenizer, add_special_tokens)
    else:
        ids = tuple(prompt)
    _check_prompt(ids, facts)
    if not ids:
        raise RequestError("the prompt is empty: it needs at least one token", "prompt")
    _check_length(len(ids), params, facts)
    return Submission(
        id=id or uuid.uuid4().hex,
        prompt=ids,
        params=_complete(params, facts, tokenizer),
        priority=priority,
        cache_salt=cache_salt,
    )


def _encode(
    text: str, facts: EngineFacts, tokenizer: Tokenizer | None, add_special_tokens: bool
) -> tuple[int, ...]:
    if tokenizer is None:
        raise RequestError(
            f"model {facts.model.name} has no tokenizer: give the prompt as token ids", "prompt"
        )
    if len(text) > facts.max_model_len * MAX_CHARACTERS_PER_TOKEN:
        raise RequestError(
            f"This model's maximum context length is {facts.max_model_len} tokens. However, the"
            f" prompt has {len(text)} characters; shorten it",
            "prompt",
        )
    return tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens))


def _check_prompt(ids: Sequence[int], facts: EngineFacts) -> None:
    for id in ids:
        if type(id) is not int:  # True is an int, too, and never meant as an id
            raise RequestError("the prompt must consist of integer token ids", "prompt")
    size = facts.model.vocab_size
    if ids and (min(ids) < 0 or max(ids) >= size):
        wrong = next(id for id in ids if not 0 <= id < size)
        shown = wrong if abs(wrong) < 2**63 else "one of more than 64 bits"
        raise RequestError(
            f"the prompt has token id {shown}, but the vocabulary's are from 0 to {size - 1}",
            "prompt",
        )


def _check_length(length: int, params: SamplingParams, facts: EngineFacts) -> None:
    limit = facts.max_model_len
    if length >= limit:
        raise RequestError(
            f"This model's maximum context length is {limit} tokens. However, the prompt has"
            f" {length} tokens, and at least one must be left for the output; shorten the prompt",
            "prompt",
        )
    wanted = max(params.max_tokens or 0, params.min_tokens)
    if length + wanted > limit:
        raise RequestError(
            f"This model's maximum context length is {limit} tokens. However, {length + wanted}"
            f" were requested ({length} in the prompt, {wanted} for the output); shorten either",
            "max_tokens" if params.max_tokens else "min_tokens",
        )


def _complete(
    params: SamplingParams, facts: EngineFacts, tokenizer: Tokenizer | None
) -> SamplingParams:
    """The parameters with bad words as tokens; every id in them checked."""
    check(params, facts.model.vocab_size)
    if params.stop and tokenizer is None:
        raise RequestError(
            f"model {facts.model.name} has no tokenizer: use stop_token_ids in place of stop",
            "stop",
        )
    if not params.bad_words:
        return params
    if tokenizer is None:
        raise RequestError(
            f"model {facts.model.name} has no tokenizer: use bad_token_ids in place of bad_words",
            "bad_words",
        )
    sequences = [ids for word in params.bad_words for ids in _spellings(word, tokenizer)]
    return replace(params, bad_token_ids=tuple(dict.fromkeys((*params.bad_token_ids, *sequences))))


def _spellings(word: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """A word's tokens at the start of a text, and after a space inside one."""
    bare = word.lstrip(" ") or word
    plain = tuple(tokenizer.encode(bare, add_special_tokens=False))
    spaced = tuple(tokenizer.encode(f" {bare}", add_special_tokens=False))
    return [ids for ids in dict.fromkeys((plain, spaced)) if ids]
