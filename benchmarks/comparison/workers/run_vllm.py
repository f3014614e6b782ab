"""vLLM's CPU build, offline, as a worker. Threads are bound by the environment it is started in."""

from collections.abc import Mapping, Sequence
from typing import Any

import protocol
import vllm


class Offline:
    def __init__(self, load: Mapping[str, Any]) -> None:
        dtype = load["settings"]["dtype"]
        budget = protocol.kv_bytes(load["model"], load["kv_tokens"], protocol.BYTES[dtype])
        self.llm = vllm.LLM(
            model=load["model"],
            dtype=dtype,
            max_model_len=2048,
            max_num_seqs=load["requests"],
            kv_cache_memory_bytes=budget,
            skip_tokenizer_init=True,
            seed=0,
        )
        self.facts = {"version": vllm.__version__, "dtype": dtype, "kv_bytes": budget}

    def generate(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> list[list[int]]:
        params = [
            vllm.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
            for count in max_tokens
        ]
        wanted = [{"prompt_token_ids": prompt} for prompt in prompts]
        results = self.llm.generate(wanted, params, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]

    def close(self) -> None:
        del self.llm


if __name__ == "__main__":
    protocol.serve(Offline)
