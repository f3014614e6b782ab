"""Whole models against transformers on the same device: greedy tokens and their probabilities.

Rounding may turn a choice between two almost equal tokens, and everything after it; so transformers
reads what the engine wrote, in float32, and says how much less likely each token was than the most
likely one, and how far the reported probability is from its own.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from accelerator.job import Job, Measure
from accelerator.models import SHAPES, make
from accelerator.records import Check, Record
from accelerator.workloads import uniform

#: Natural-log probability, by the dtype of the engine's run. Rounding the 28 layers of Qwen3-0.6B's
#: shape to bfloat16 was seen to move it by 0.02 within 16 tokens; here are hundreds.
ALLOWED = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.03}

TINY = ("tiny-qwen3", "tiny-llama")


def measures(job: Job) -> list[Measure]:
    """Of the models that the job names; small ones in float32 too, where rounding hides nothing."""
    found = []
    for name in job.arguments.get("models", TINY):
        for dtype in ("float32", "bfloat16") if name in TINY else ("bfloat16",):
            run = partial(compare, job, name, dtype)
            found.append(Measure(f"{name} in {dtype}", run, estimate_s=10))
    return found


def compare(job: Job, name: str, dtype: str) -> Iterator[Record]:
    """Prompts of several lengths together, so that steps are mixed and graphs of several sizes are
    used; then one alone, whose beginning is cached."""
    from engine import LLM, SamplingParams

    assert job.models is not None
    folder = make(name, job.models, job.device)
    vocab = SHAPES[name].vocab_size
    lengths = job.pick((1, 15, 16, 17, 100, 257, 600), (1, 17, 40))
    prompts = [uniform("agreement", 1, n, 1, vocab).prompts[0] for n in lengths]
    made = job.pick(32, 4)
    params = SamplingParams(temperature=0.0, max_tokens=made, ignore_eos=True, logprobs=0)
    with LLM(
        model=str(folder),
        device=job.engine_device,
        dtype=dtype,
        **{"max_requests": 16, "max_model_len": 1024, "num_blocks": 512, **job.settings},
    ) as llm:
        wanted: list[str | Sequence[int]] = [*prompts]
        found = llm.generate(wanted, params)
        found += llm.generate(prompts[-1], params)
    prompts.append(prompts[-1])
    reference = Reference(folder, job.device)
    worst_choice = worst_report = 0.0
    equal = total = 0
    for prompt, output in zip(prompts, found, strict=True):
        one = output.outputs[0]
        reported = [each.logprob for each in one.logprobs or ()]
        choice, report, same = reference.judge(prompt, one.token_ids, reported)
        worst_choice, worst_report = max(worst_choice, choice), max(worst_report, report)
        equal, total = equal + same, total + len(one.token_ids)
    allowed = ALLOWED[dtype]
    what = f"{name} in {dtype} against transformers"
    detail = f"{equal} of {total} tokens are its own choice; the others are less likely by at most"
    yield Check(
        f"{what}: greedy tokens",
        total == made * len(prompts) and worst_choice <= allowed,
        f"{detail} {worst_choice:.2g}, allowed {allowed:.2g}",
    )
    yield Check(
        f"{what}: log probabilities",
        worst_report <= allowed,
        f"off by at most {worst_report:.2g}, allowed {allowed:.2g}",
    )


class Reference:
    """transformers in float32 on the weights as they are stored."""

    def __init__(self, folder: Any, device: str) -> None:
        import transformers

        loader: Any = transformers.AutoModelForCausalLM
        self.model = loader.from_pretrained(folder, dtype=torch.float32)
        self.model.eval().to(device)

    @torch.inference_mode()
    def judge(
        self, prompt: Sequence[int], output: Sequence[int], reported: Sequence[float]
    ) -> tuple[float, float, int]:
        """How much less likely a token is than the best one, how far a reported log probability is
        off, at most; and how many tokens are the best ones. NaN counts as infinite."""
        ids = torch.tensor([[*prompt, *output]], device=self.model.device)
        logits = self.model(ids, logits_to_keep=len(output) + 1).logits[0, :-1]
        logprobs = logits.double().log_softmax(-1).cpu()
        chosen = logprobs.gather(1, torch.tensor(output)[:, None])[:, 0]
        choice = (logprobs.amax(-1) - chosen).max()
        report = (chosen - torch.tensor(reported, dtype=torch.float64)).abs().max()
        same = int((logprobs.argmax(-1) == torch.tensor(output)).sum())
        worst = torch.stack((choice, report)).nan_to_num(nan=float("inf")).tolist()
        return worst[0], worst[1], same
