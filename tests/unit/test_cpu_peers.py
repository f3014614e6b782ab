"""What `benchmarks/cpu_peers.py` does besides measuring: prompts, ratios, formats, workers."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def rotate_halves(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """As transformers does: row i of a head with row i + head_dim/2."""
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rotate_pairs(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """As GGUF's "llama" does: row 2i of a head with row 2i + 1."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def test_permuted_projections_give_the_same_attention_scores_under_the_other_rotation() -> None:
    from comparison.formats.gguf_file import interleaved

    draw = np.random.default_rng(0)
    heads, head_dim, hidden = 3, 8, 5
    x = draw.normal(size=(2, hidden))  # two positions
    angles = draw.normal(size=(2, 1, head_dim // 2))
    q, k = draw.normal(size=(2, heads * head_dim, hidden))

    def scores(rotate, q, k):  # type: ignore[no-untyped-def]
        rotated = [rotate((x @ w.T).reshape(2, heads, head_dim), angles) for w in (q, k)]
        return np.einsum("nhd,mhd->hnm", *rotated)

    expected = scores(rotate_halves, q, k)
    found = scores(rotate_pairs, interleaved(q, heads), interleaved(k, heads))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert not np.allclose(scores(rotate_pairs, q, k), expected)


def test_everyone_gets_the_same_prompts_in_a_round_and_others_in_the_next() -> None:
    from comparison.cases import CASES, Size

    size = Size(vocab_size=100, requests=4)

    def asked(workload: str, seed: str) -> list[object]:
        seen: list[object] = []

        def ask(prompts, counts):  # type: ignore[no-untyped-def]
            seen.append((prompts, counts))
            return 1.0 + len(seen)

        CASES[workload].measure(ask, random.Random(seed), size)
        return seen

    for workload in CASES:
        assert asked(workload, "round 0") == asked(workload, "round 0")
        assert asked(workload, "round 0") != asked(workload, "round 1")


def test_workloads_are_of_the_stated_sizes() -> None:
    from comparison.cases import Size, mixture

    prompts, counts = mixture(random.Random(0), 300, Size(vocab_size=7))
    assert 32 <= min(map(len, prompts)) < 50 < 490 < max(map(len, prompts)) <= 512
    assert 16 <= min(counts) < 30 < 240 < max(counts) <= 256
    _, short = mixture(random.Random(0), 300, Size(vocab_size=7, output_scale=0.25))
    assert short == [round(count / 4) for count in counts]


def test_one_stream_is_timed_without_its_first_token() -> None:
    from comparison.cases import Size, single

    def ask(prompts, counts):  # type: ignore[no-untyped-def]
        return 0.5 + 0.01 * (counts[0] - 1)

    assert single(ask, random.Random(0), Size(vocab_size=7)) == pytest.approx(100)


def test_a_prefix_is_shared_by_all_its_requests() -> None:
    from comparison.cases import Size, prefix

    def ask(prompts, counts):  # type: ignore[no-untyped-def]
        assert {tuple(prompt[:1024]) for prompt in prompts} == {tuple(prompts[0][:1024])}
        assert len({tuple(prompt) for prompt in prompts}) == 8
        assert {len(prompt) for prompt in prompts} == {1056}
        return 2.0

    assert prefix(ask, random.Random(0), Size(vocab_size=50000, requests=8)) == 8 * 16 / 2.0


@pytest.mark.parametrize(("higher_is_better", "expected"), [(True, 3.0), (False, 1 / 3)])
def test_a_ratio_over_one_means_that_ours_is_better(
    higher_is_better: bool, expected: float
) -> None:
    from comparison.results import Measure, ratio

    measure = Measure("any", "unit", higher_is_better)
    assert ratio(measure, [1, 6, 7], [2, 0, 100]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        ("llama.cpp-q4_0", "engine-int4"),
        ("openvino-int4", "engine-int4"),
        ("llama.cpp-q8_0", "engine-bf16"),
        ("vllm-bf16", "engine-bf16"),
        ("transformers-fp32", "engine-bf16"),
        ("engine-int4", None),
    ],
)
def test_peers_are_compared_with_ours_of_their_width_or_else_our_widest(
    who: str, expected: str | None
) -> None:
    from comparison.results import counterpart

    assert counterpart(who, ["vllm-bf16", "engine-int4", "engine-bf16"]) == expected
    assert counterpart("vllm-bf16", ["vllm-bf16"]) is None


def test_another_model_is_noticed_and_rounding_is_not() -> None:
    from comparison.results import agree

    reference = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]]
    rounded = agree([[1, 2, 3], [4, 0, 6], [7, 8, 0], [0, 1, 1]], reference)
    assert (rounded.first_tokens, rounded.tokens) == (3, 6)
    assert not rounded.suspicious
    assert agree([[0, 2, 3], [4, 5, 6], [0, 8, 9], [0, 1, 1]], reference).suspicious


def test_weights_that_a_token_is_multiplied_with_are_those_of_the_real_model() -> None:
    from shapes import SHAPES
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = SHAPES["tiny"]
    model = AutoModelForCausalLM.from_config(LlamaConfig(**vars(shape)))
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    assert shape.matrix_weights == sum(matrix.numel() for matrix in matrices)


WORKER = """
import sys
sys.path.insert(0, {workers!r})
import protocol

class Counting:
    facts = {{"version": "1", "kv_bytes": None}}
    def generate(self, prompts, max_tokens):
        print("noise of a library")
        if prompts == [[13]]:
            raise ValueError("unlucky")
        if prompts == [[99]]:
            sys.exit(3)
        return [[prompt[-1]] * count for prompt, count in zip(prompts, max_tokens)]
    def close(self):
        pass

protocol.serve(lambda load: Counting())
"""


@pytest.fixture
def worker(tmp_path: Path):  # type: ignore[no-untyped-def]
    from comparison.processes import Worker

    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(workers=str(BENCHMARKS / "comparison" / "workers")))
    worker = Worker([sys.executable, str(script)], {}, tmp_path / "log")
    yield worker
    worker.close()


def test_a_worker_answers_though_its_libraries_print(worker) -> None:  # type: ignore[no-untyped-def]
    assert worker.ask(30, do="load")["facts"]["version"] == "1"
    answer = worker.ask(30, do="generate", prompts=[[5]], max_tokens=[2])
    assert answer["outputs"] == [[5, 5]]
    assert answer["seconds"] > 0


def test_a_worker_that_refuses_goes_on_and_one_that_ends_is_reported(worker) -> None:  # type: ignore[no-untyped-def]
    from comparison.processes import PeerError

    with pytest.raises(PeerError, match="generate before load"):
        worker.ask(30, do="generate", prompts=[[5]], max_tokens=[2])
    worker.ask(30, do="load")
    with pytest.raises(PeerError, match="ValueError: unlucky"):
        worker.ask(30, do="generate", prompts=[[13]], max_tokens=[1])
    assert worker.ask(30, do="generate", prompts=[[5]], max_tokens=[1])["outputs"] == [[5]]
    with pytest.raises(PeerError, match="ended with status 3"):
        worker.ask(30, do="generate", prompts=[[99]], max_tokens=[1])


def test_a_paused_worker_does_not_answer_until_it_goes_on(worker) -> None:  # type: ignore[no-untyped-def]
    from comparison.processes import PeerError

    worker.ask(30, do="load")
    worker.group.pause()
    with pytest.raises(PeerError, match="no answer to generate"):
        worker.ask(0.3, do="generate", prompts=[[5]], max_tokens=[1])


def test_a_peer_that_cannot_be_installed_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comparison import environments
    from comparison.processes import PeerError

    def broken(made: environments.Made) -> None:
        made.run([made.python, "-c", "print('no compiler here'); raise SystemExit(4)"])

    (tmp_path / "nothing.txt").write_text("")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    environment = environments.Environment("nothing", broken)
    with pytest.raises(PeerError, match=r"status 4.*no compiler here"):
        environments.make(environment, tmp_path / "cache")
    works = environments.Environment("nothing")
    made = environments.make(works, tmp_path / "cache")
    assert (made.folder / "complete").exists()
    assert environments.make(works, tmp_path / "cache") == made


def test_a_gate_is_closed_only_while_its_command_holds(tmp_path: Path) -> None:
    from comparison.roster import Gate

    flag = tmp_path / "quiet"
    gate = Gate(f"touch {flag}; echo ready; cat > /dev/null; rm {flag}")
    with gate.closed():
        assert flag.exists()
    assert not flag.exists()
    with pytest.raises(SystemExit, match="without saying"), Gate("true").closed():
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "unknown workloads"),
        (["single", "--who", "someone"], "unknown participants"),
        (["--rounds", "0"], "at least 1"),
    ],
)
def test_wrong_arguments_are_refused_with_what_there_is(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import cpu_peers

    monkeypatch.setattr(sys, "argv", ["cpu_peers.py", *arguments])
    with pytest.raises(SystemExit):
        cpu_peers.main()
    assert message in capsys.readouterr().err
