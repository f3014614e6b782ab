"""A tiny random Llama, made on the spot, and transformers in float32 as its oracle."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from engine.batch import Logprobs
from engine.testing.checks.oracle import Oracle

VOCABULARY = 96
#: Tokens. Long enough for three blocks of the largest usual block size.
CONTEXT = 1024
WEIGHTS = "model.safetensors"


def make(folder: Path, seed: int = 0) -> Path:
    """Write the model into `folder`: two layers, 4 heads over 2 key/value heads of 16.

    The weights are larger than usual, so that one token is clearly the most likely one.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.15,
        dtype="float32",
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.random.set_rng_state(state)
    config.save_pretrained(folder)
    save_file(model.state_dict(), folder / WEIGHTS, {"format": "pt"})
    return folder


class ModelOracle(Oracle):
    """Computes on the host, without a cache, one sequence at a time."""

    vocab_size = VOCABULARY

    def __init__(self, folder: Path) -> None:
        self._model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
        self._model.load_state_dict(load_file(folder / WEIGHTS))
        self._model.requires_grad_(False)

    def error(
        self,
        prompt: Sequence[int],
        output: Sequence[int],
        logprobs: Sequence[Logprobs],
        prompt_logprobs: Sequence[Logprobs] = (),
    ) -> float:
        # true_LV[i] are the logprobs of token i + 1
        true_LV = self._logprobs([*prompt, *output])
        start = len(prompt) - 1
        worst = 0.0
        for i, token in enumerate(output):
            row = true_LV[start + i]
            worst = max(worst, float(row.max() - row[token]))
        for i, reported in enumerate(logprobs):
            worst = max(worst, _distance(true_LV[start + i], reported))
        for i, reported in enumerate(prompt_logprobs):
            worst = max(worst, _distance(true_LV[i], reported))
        return worst

    @torch.inference_mode()
    def _logprobs(self, tokens: Sequence[int]) -> Tensor:
        logits: Tensor = self._model(torch.tensor([list(tokens)])).logits[0]
        return logits.double().log_softmax(-1)


def _distance(true_V: Tensor, reported: Logprobs) -> float:
    pairs = [(reported.token, reported.logprob), *reported.top]
    return max(abs(float(true_V[token]) - logprob) for token, logprob in pairs)
