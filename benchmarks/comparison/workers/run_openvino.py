"""OpenVINO GenAI's continuous batching, as a worker. KV cache of its default type."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
import protocol


class Pipeline:
    def __init__(self, load: Mapping[str, Any]) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = load["requests"]
        scheduler.num_kv_blocks = -(-load["kv_tokens"] // BLOCK)
        if "max_num_batched_tokens" in load["settings"]:
            scheduler.max_num_batched_tokens = load["settings"]["max_num_batched_tokens"]
        self.pipeline = genai.ContinuousBatchingPipeline(
            load["exported"], scheduler, "CPU", {"INFERENCE_NUM_THREADS": load["threads"]}
        )
        self.facts = {
            "version": genai.__version__,
            "dtype": load["settings"]["weights"],
            "kv_bytes": protocol.kv_bytes(load["model"], load["kv_tokens"], protocol.BYTES["int8"]),
        }

    def generate(self, prompts: Sequence[list[int]], max_tokens: Sequence[int]) -> list[list[int]]:
        tensors = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = self.pipeline.generate(tensors, [_greedy(count) for count in max_tokens])
        return [list(result.m_generation_ids[0]) for result in results]

    def close(self) -> None:
        del self.pipeline


BLOCK = 32  # tokens a KV block has on its CPU plugin


def _greedy(count: int) -> Any:
    config = genai.GenerationConfig()
    config.max_new_tokens = count
    config.min_new_tokens = count
    config.ignore_eos = True
    config.do_sample = False
    return config


if __name__ == "__main__":
    protocol.serve(Pipeline)
