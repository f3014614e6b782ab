"""Ranks over gloo, each a process: exact collectives, and the model's in its programs."""

import pytest
from neuron_on_cpu import host_spec

from engine import LLM, SamplingParams
from engine.assemble import assemble
from engine.testing.checks import Case, Status, Subject, cases, driving, run

#: One dtype of the collectives that are exact in each, and one scene.
CHOSEN = [
    one
    for one in cases("ranks")
    if one.id.endswith("/float32") or one.id == "ranks/tensor-parallel/preempted"
]
SMALL = {
    "max_requests": 1,
    "max_batch_tokens": 128,
    "max_model_len": 256,
    "num_blocks": 9,
    "dtype": "float32",
}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
    """As far as other processes can tell, by what a package leaves beside its code."""
    folder = tmp_path_factory.mktemp("installed")
    facts = folder / "neuron_on_cpu-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: neuron_on_cpu\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[engine.platforms]\nneuron_on_cpu = neuron_on_cpu\nneuron_traced = neuron_on_cpu\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    made = Subject(host_spec(), tmp_path_factory.mktemp("tiny-model"))
    yield made
    made.close()


@pytest.mark.parametrize("case", CHOSEN, ids=[one.id for one in CHOSEN])
def test_two_ranks_agree_with_one(subject: Subject, case: Case):
    result = run(case, subject)
    assert result.status is Status.PASSED, result.reason


def test_collectives_are_part_of_the_graphs_of_a_divided_model(model):
    prompt = tuple(range(3, 60))
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    with LLM(model=model, device="cpu", **SMALL) as llm:
        [right] = llm.generate([prompt], params)
    engine = assemble({"model": model, "device": "neuron_traced", "tensor_parallel": 2, **SMALL})
    try:
        [answer] = driving.run(engine.loop, driving.ask("a", prompt, 5)).values()
        steps = [
            [str(node.target) for node in graph.graph.nodes]
            for graph in engine.platform.graphs_made
        ]
    finally:
        engine.close()
    assert answer.tokens == list(right.outputs[0].token_ids)
    sums = [one.count("_c10d_functional.all_reduce") for one in steps]
    sums_of_a_step = 1 + 2 * 2  # of the embedding; of the attention and the MLP of both layers
    assert sorted(sums)[-2:] == [sums_of_a_step] * 2, "a decode step, and one of a prompt"
