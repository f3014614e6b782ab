"""What is measured. Each workload gives the same prompts to everyone, and a table of numbers."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import PEERS, Engine, Peer

Numbers = dict[str, float]


@dataclass(frozen=True)
class Setup:
    """What the command line chose."""

    model: Path
    vocab_size: int
    device: str
    dtype: str
    requests: int
    seed: int
    peers: tuple[str, ...]
    settings: dict[str, Any]  # more of the engine's


@dataclass(frozen=True)
class Outcome:
    workload: str
    described: str
    numbers: dict[str, Numbers]  # by who: "engine", or a peer's name
    better: dict[str, str]  # "higher" or "lower", by measure

    @property
    def ratios(self) -> dict[str, Numbers]:
        """How many times better the engine is than each peer; below 1 is worse."""
        ours = self.numbers["engine"]
        return {
            who: {
                name: ours[name] / value if self.better[name] == "higher" else value / ours[name]
                for name, value in theirs.items()
                if name in ours and value and ours[name]
            }
            for who, theirs in self.numbers.items()
            if who != "engine"
        }


def offline(setup: Setup) -> Outcome:
    """Throughput with all requests there at once."""
    random_ = random.Random(setup.seed)
    lengths = [random_.randint(32, 512) for _ in range(setup.requests)]
    counts = [random_.randint(16, 256) for _ in range(setup.requests)]
    prompts = [_prompt(random_, length, setup) for length in lengths]

    def measure(peer: Peer) -> Numbers:
        peer.generate(prompts[:1], [4])  # what is lazy happens here
        seconds, outputs = _timed(peer, prompts, counts)
        made = sum(map(len, outputs))
        return {
            "seconds": seconds,
            "output_tokens_per_s": made / seconds,
            "total_tokens_per_s": (made + sum(lengths)) / seconds,
        }

    return _compare(
        setup,
        "offline",
        f"{setup.requests} requests, prompts of 32 to 512 tokens, outputs of 16 to 256, greedy",
        measure,
    )


def single(setup: Setup) -> Outcome:
    """One stream at a time: time to the first token, and tokens a second after it."""
    random_ = random.Random(setup.seed)
    prompts = [_prompt(random_, 128, setup) for _ in range(4)]
    count = 64

    def measure(peer: Peer) -> Numbers:
        peer.generate(prompts[:1], [4])
        firsts, rates = [], []
        for prompt in prompts[1:]:
            first, _ = _timed(peer, [prompt[::-1]], [1])  # no prefix of it was seen before
            whole, _ = _timed(peer, [prompt], [count])
            firsts.append(first)
            rates.append((count - 1) / max(whole - first, 1e-9))
        return {"first_token_s": _median(firsts), "decode_tokens_per_s": _median(rates)}

    return _compare(
        setup, "single", f"one stream, 128 prompt tokens, {count} output tokens, greedy", measure
    )


def prefix(setup: Setup) -> Outcome:
    """Requests that begin with the same 1,024 tokens."""
    random_ = random.Random(setup.seed)
    common = _prompt(random_, 1024, setup)
    prompts = [common + _prompt(random_, 32, setup) for _ in range(setup.requests)]
    counts = [16] * setup.requests

    def measure(peer: Peer) -> Numbers:
        peer.generate([_prompt(random.Random(-1), 64, setup)], [4])
        seconds, outputs = _timed(peer, prompts, counts)
        return {
            "seconds": seconds,
            "total_tokens_per_s": (sum(map(len, prompts)) + sum(map(len, outputs))) / seconds,
        }

    outcome = _compare(
        setup,
        "prefix",
        f"{setup.requests} requests, 1,024 equal prompt tokens and 32 own, 16 output tokens",
        measure,
    )
    without = Engine(
        setup.model, setup.device, setup.dtype, **{**setup.settings, "prefix_caching": False}
    )
    outcome.numbers["engine without prefix cache"] = measure(without)
    without.close()
    return outcome


def waste(setup: Setup) -> Outcome:
    """Share of the allocated KV slots that hold no token, looked at in every step.

    The scheduler alone decides it, so the model is replaced by a runner that computes nothing.
    """
    from engine.config import EngineConfig
    from engine.loop import EngineLoop
    from engine.params import SamplingParams
    from engine.platform import Capabilities
    from engine.request import Submission
    from engine.testing.null import NullRunner

    size = setup.settings.get("block_size") or 16
    runner = NullRunner(2048, block_size=size, verify=False)
    loop = EngineLoop(
        EngineConfig(overlap=True),
        runner,
        num_blocks=runner.load(),
        block_size=size,
        max_model_len=2048,
        capabilities=Capabilities(
            mixed_batches=True, chunked_prefill=True, prefix_reuse=True, overlap=True
        ),
    )
    random_ = random.Random(setup.seed)
    for number in range(setup.requests):
        prompt = tuple(_prompt(random_, random_.randint(32, 512), setup))
        params = SamplingParams(
            max_tokens=random_.randint(16, 256), n=random_.choice((1, 1, 1, 4)), ignore_eos=True
        )
        loop.submit(Submission(str(number), prompt, params))
    shares, allocated, unused = [], 0, 0
    while not loop.idle:
        loop.step()
        filled: dict[int, int] = {}
        for request in loop.scheduler.running:
            for i, block in enumerate(request.blocks):
                tokens = min(size, max(0, request.computed - i * size))
                filled[block] = max(filled.get(block, 0), tokens)
        if filled:
            slots = len(filled) * size
            allocated += slots
            unused += slots - sum(filled.values())
            shares.append(1 - sum(filled.values()) / slots)
    numbers = {
        "unused_share": unused / allocated,
        "median_unused_share": _median(shares),
        "largest_unused_share": max(shares),
        "steps": float(len(shares)),
    }
    described = (
        f"{setup.requests} requests, prompts of 32 to 512 tokens, outputs of 16 to 256, some of"
        f" them four times; blocks of {size}; no model"
    )
    return Outcome("waste", described, {"engine": numbers}, {})


def _compare(
    setup: Setup, name: str, described: str, measure: Callable[[Peer], Numbers]
) -> Outcome:
    """Ours and every peer, one after the other, in this process."""
    numbers = {}
    engine: Peer = Engine(setup.model, setup.device, setup.dtype, **setup.settings)
    numbers["engine"] = measure(engine)
    engine.close()
    for who in setup.peers:
        peer = PEERS[who](setup.model, setup.device, setup.dtype)
        numbers[who] = measure(peer)
        peer.close()
    better = {
        measure_name: "lower"
        if (measure_name.endswith("_s") and "per" not in measure_name) or measure_name == "seconds"
        else "higher"
        for measure_name in numbers["engine"]
    }
    return Outcome(name, described, numbers, better)


def _timed(
    peer: Peer, prompts: Sequence[list[int]], counts: Sequence[int]
) -> tuple[float, list[list[int]]]:
    began = time.perf_counter()
    outputs = peer.generate(prompts, counts)
    seconds = time.perf_counter() - began
    made = [len(output) for output in outputs]
    if made != list(counts):
        raise RuntimeError(f"asked for {list(counts)} tokens, got {made}")
    return seconds, outputs


def _prompt(random_: random.Random, length: int, setup: Setup) -> list[int]:
    return [random_.randrange(setup.vocab_size) for _ in range(length)]


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


WORKLOADS: dict[str, Callable[[Setup], Outcome]] = {
    "offline": offline,
    "single": single,
    "prefix": prefix,
    "waste": waste,
}
