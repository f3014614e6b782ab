"""Who continues prompts: ours, and the anchors.

Each is made once in a process of its own, and ends with it.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from accelerator.job import Job
from accelerator.records import OURS
from accelerator.workloads import Workload

#: Tokens of prompt and output that everyone is prepared for.
CONTEXT = 9216


class Participant(Protocol):
    @property
    def facts(self) -> dict[str, str | float]:
        """What is worth knowing about how it runs."""

    def run(self, workload: Workload) -> None:
        """All requests at once; each makes its tokens, whatever the model says.

        Raises:
            RuntimeError: one did not.
        """


class Ours:
    def __init__(self, job: Job, folder: Path, precision: str) -> None:
        from engine import LLM

        few_bits = {"quantization": "fp8", "kv_dtype": "fp8_e4m3"} if precision == "fp8" else {}
        usual = {"max_requests": job.pick(512, 8), "max_model_len": job.pick(CONTEXT, 512)}
        if not job.full:
            usual["num_blocks"] = 256
        settings = {"dtype": "bfloat16", **usual, **few_bits, **job.settings}
        self.llm = LLM(model=str(folder), device=job.engine_device, **settings)

    @property
    def facts(self) -> dict[str, str | float]:
        facts = self.llm.facts
        return {
            "platform": f"{facts.platform}, {facts.device}, {facts.dtype}",
            "ledger": facts.ledger,
            "programs": float(self.llm.stats.num_compiled),
            "preemptions": float(self.llm.stats.num_preemptions),
        }

    def run(self, workload: Workload) -> None:
        from engine import SamplingParams

        params = [
            SamplingParams(temperature=workload.temperature, max_tokens=count, ignore_eos=True)
            for count in workload.outputs
        ]
        prompts: list[str | Sequence[int]] = [*workload.prompts]
        found = self.llm.generate(prompts, params)
        check(workload, [len(one.outputs[0].token_ids) for one in found])


class Transformers:
    """Its continuous batching; one request alone goes through `generate`."""

    def __init__(self, job: Job, folder: Path, precision: str) -> None:
        import torch
        import transformers

        self.facts: dict[str, str | float] = {"version": transformers.__version__}
        loader: Any = transformers.AutoModelForCausalLM
        self.model = loader.from_pretrained(folder, dtype=torch.bfloat16)
        self.model.eval().to(job.device)
        self._small = not job.full

    def run(self, workload: Workload) -> None:
        if len(workload.prompts) == 1:
            check(workload, [self._generate(workload)])
        else:
            check(workload, self._batch(workload))

    def _generate(self, workload: Workload) -> int:
        import torch
        from transformers import GenerationConfig

        [prompt], [count] = workload.prompts, workload.outputs
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=0
        )
        ids = torch.tensor([prompt], device=self.model.device)
        with torch.inference_mode():
            found = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
        return int(found.shape[1]) - len(prompt)

    def _batch(self, workload: Workload) -> list[int]:
        lengths: dict[str, int] = {}
        names = [f"{workload.name} {number}" for number in range(len(workload.prompts))]
        for name, prompt, count in zip(names, workload.prompts, workload.outputs, strict=True):
            self._manager.add_request(list(prompt), request_id=name, max_new_tokens=count)
        while len(lengths) < len(names):
            result = self._manager.get_result(timeout=1)
            if result is None and not self._manager.is_running():
                raise RuntimeError("transformers' continuous batching ended before its requests")
            if result is not None and result.is_finished():
                lengths[result.request_id] = len(result.generated_tokens)
        return [lengths[name] for name in names]

    @cached_property
    def _manager(self) -> Any:
        from transformers import GenerationConfig

        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        sizes: dict[str, Any] = {}
        if self._small:  # it takes what memory there is, of a host as well
            from transformers import ContinuousBatchingConfig

            few = ContinuousBatchingConfig(num_blocks=32, page_size=16, max_batch_tokens=64)
            sizes = {"continuous_batching_config": few}
        manager = self.model.init_continuous_batching(generation_config=config, **sizes)
        manager.start()
        return manager


class Vllm:
    def __init__(self, job: Job, folder: Path, precision: str) -> None:
        import vllm  # type: ignore[import-not-found]

        few_bits = {"quantization": "fp8", "kv_cache_dtype": "fp8"} if precision == "fp8" else {}
        self.facts: dict[str, str | float] = {"version": vllm.__version__}
        self.llm = vllm.LLM(
            model=str(folder),
            dtype="bfloat16",
            max_model_len=CONTEXT,
            max_num_seqs=512,
            skip_tokenizer_init=True,
            seed=0,
            **few_bits,
        )

    def run(self, workload: Workload) -> None:
        import vllm

        params = [
            vllm.SamplingParams(
                temperature=workload.temperature,
                max_tokens=count,
                ignore_eos=True,
                detokenize=False,
            )
            for count in workload.outputs
        ]
        wanted = [{"prompt_token_ids": list(prompt)} for prompt in workload.prompts]
        found = self.llm.generate(wanted, params, use_tqdm=False)
        check(workload, [len(one.outputs[0].token_ids) for one in found])


PARTICIPANTS: dict[str, type[Ours] | type[Transformers] | type[Vllm]] = {
    OURS: Ours,
    "transformers": Transformers,
    "vLLM": Vllm,
}


def check(workload: Workload, made: Sequence[int]) -> None:
    """
    Raises:
        RuntimeError: a request is not as long as it should be.
    """
    wrong = [one for one in zip(made, workload.outputs, strict=True) if one[0] != one[1]]
    if wrong:
        raise RuntimeError(
            f"{workload.name}: {len(wrong)} of {len(made)} requests are not as long as asked for;"
            f" the first has {wrong[0][0]} tokens instead of {wrong[0][1]}"
        )
