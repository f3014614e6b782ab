"""A model divided between two ranks, each a process with the host in the place of a GPU."""

import pytest
from triton_on_cpu import spec

from engine.assemble import assemble
from engine.testing.checks import Subject
from engine.testing.checks.driving import ask, error_of, run
from engine.testing.checks.subject import OnlyThis

SMALL = {
    "dtype": "float32",
    "max_requests": 2,
    "max_batch_tokens": 24,
    "max_model_len": 64,
    "num_blocks": 12,
    "overlap": True,
    "tensor_parallel": 2,
}
#: Of natural logarithms of probabilities, against transformers in float32.
TOLERANCE = 1e-4


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The stand-in, as far as the other rank's process can tell, by what a package leaves."""
    facts = tmp_path / "triton_on_cpu-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: triton_on_cpu\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[engine.platforms]\ncuda_on_cpu = triton_on_cpu\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_two_ranks_replay_programs_with_their_collectives_in_them(model):
    ours = spec("cuda_on_cpu")
    asked = [ask(str(n), tuple(3 + 7 * i % 90 for i in range(n)), 4) for n in (9, 30)]
    engine = assemble({"model": str(model), "device": ours.name, **SMALL}, OnlyThis(ours))
    found = run(engine.loop, *asked)
    replayed = sum(one.num_replays for one in engine.platform.gpu.recordings)
    engine.close()
    assert error_of(Subject(ours, model).oracle, found.values(), 4) < TOLERANCE
    assert replayed >= 3
