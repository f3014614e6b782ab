"""What should come out: transformers' processors in float64, and OpenAI's formula for penalties."""

import torch
from torch import Tensor
from transformers.generation import logits_process as theirs

from engine.params import SamplingParams


def expected_probabilities(
    logits: Tensor, params: SamplingParams, tokens: list[int], num_prompt: int, stop_ids: list[int]
) -> Tensor:
    """float64 [V], for a request that is not greedy and knows `tokens` so far."""
    ids = torch.tensor([tokens])
    scores = logits.double().unsqueeze(0)
    for processor in _before_penalties(params, len(scores[0]), num_prompt, stop_ids):
        scores = processor(ids, scores)
    scores = theirs.RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty))(ids, scores)
    for token in set(tokens[num_prompt:]):
        count = tokens[num_prompt:].count(token)
        scores[0, token] -= count * params.frequency_penalty + params.presence_penalty
    for processor in _filters(params, len(scores[0])):
        scores = processor(ids, scores)
    return scores.softmax(-1)[0]


def _before_penalties(params, size, num_prompt, stop_ids):
    if params.allowed_token_ids is not None:
        others = sorted(set(range(size)) - set(params.allowed_token_ids))
        yield theirs.SuppressTokensLogitsProcessor(others)
    if params.bad_token_ids:
        yield theirs.NoBadWordsLogitsProcessor([list(one) for one in params.bad_token_ids])
    if params.min_tokens and stop_ids:
        yield theirs.MinNewTokensLengthLogitsProcessor(num_prompt, params.min_tokens, stop_ids)
    if params.logit_bias:
        bias = [[[token], float(value)] for token, value in params.logit_bias.items()]
        yield theirs.SequenceBiasLogitsProcessor(bias)


def _filters(params, size):
    yield theirs.TemperatureLogitsWarper(float(params.temperature))
    if params.top_k > 0:
        yield theirs.TopKLogitsWarper(min(params.top_k, size))
    if params.top_p < 1:
        yield theirs.TopPLogitsWarper(params.top_p)
    if params.min_p > 0:
        yield theirs.MinPLogitsWarper(params.min_p)
