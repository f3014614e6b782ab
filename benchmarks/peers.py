"""Who takes part in a comparison. A new one is a class with these members and an entry in PEERS.

A peer is made for one model and closed after the workload, so that two never share the memory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Peer(Protocol):
    def generate(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> list[list[int]]:
        """Greedy continuations of exactly these many tokens, whatever the model says."""

    def close(self) -> None: ...


class Engine:
    """Ours, offline. `settings` are those of `EngineConfig`."""

    def __init__(self, model: Path, device: str, dtype: str, **settings: Any) -> None:
        from engine import LLM

        self.llm = LLM(model=str(model), device=device, dtype=dtype, **settings)

    def generate(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> list[list[int]]:
        from engine import SamplingParams

        params = [
            SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
            for count in max_tokens
        ]
        wanted: list[str | Sequence[int]] = [*prompts]
        results = self.llm.generate(wanted, params)
        return [list(result.outputs[0].token_ids) for result in results]

    def close(self) -> None:
        self.llm.close()


class Transformers:
    """`generate` of transformers, in batches of `batch` padded on the left.

    Each batch runs until its longest request is done, as static batching does; what a request did
    not ask for is cut off, and does not count as output.
    """

    def __init__(self, model: Path, device: str, dtype: str, batch: int = 32) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.batch = batch
        kind = "auto" if dtype == "auto" else getattr(torch, dtype)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=kind).eval()
        if device.partition(":")[0] != "cpu":
            self.model.to(device)

    def generate(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> list[list[int]]:
        outputs: list[list[int]] = []
        for start in range(0, len(prompts), self.batch):
            stop = start + self.batch
            outputs += self._batch(prompts[start:stop], max_tokens[start:stop])
        return outputs

    def _batch(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> list[list[int]]:
        import torch
        from transformers import GenerationConfig

        longest = max(map(len, prompts))
        pads = [longest - len(prompt) for prompt in prompts]
        ids = torch.tensor([[0] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
        most = max(counts)
        config = GenerationConfig(
            do_sample=False, max_new_tokens=most, min_new_tokens=most, pad_token_id=0
        )
        device = self.model.device
        with torch.inference_mode():
            result = self.model.generate(
                ids.to(device), attention_mask=mask.to(device), generation_config=config
            )
        rows = result[:, longest:].tolist()
        return [row[:count] for row, count in zip(rows, counts, strict=True)]

    def close(self) -> None:
        del self.model


PEERS = {"transformers": Transformers}
