"""Ranks over gloo, each a process: exact collectives, and the model's in its programs."""

import pytest
from neuron_on_cpu import host_spec

from engine.testing.checks import Case, Status, Subject, cases, run

NAMES = (
    "all-reduce",
    "all_reduce",
    "all-gather",
    "all_gather",
    "reduce",
    "tensor-parallel/batched",
)
RANKS = [one for one in cases("ranks") if any(name in one.id for name in NAMES)]
CHOSEN = [one for one in RANKS if "float32" in one.id or "tensor-parallel" in one.id]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Installed, as far as other processes can tell, by what a package leaves beside its code."""
    folder = tmp_path_factory.mktemp("installed")
    facts = folder / "neuron_on_cpu-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: neuron_on_cpu\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[engine.platforms]\nneuron_on_cpu = neuron_on_cpu\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield from _subject(tmp_path_factory)


def _subject(tmp_path_factory):
    made = Subject(host_spec(), tmp_path_factory.mktemp("tiny-model"))
    yield made
    made.close()


@pytest.mark.parametrize("case", CHOSEN, ids=[one.id for one in CHOSEN])
def test_two_ranks_agree_with_one(subject: Subject, case: Case):
    result = run(case, subject)
    assert result.status is Status.PASSED, result.reason
