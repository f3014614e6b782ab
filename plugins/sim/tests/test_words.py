"""What `--device sim:…` takes."""

import re
import subprocess
import sys

import pytest

import engine_sim
from engine.config import DeviceChoice, EngineConfig
from engine.errors import ConfigError
from engine_sim.platform import SimPlatform
from engine_sim.profiles import names, profile
from engine_sim.words import OWN_PROFILE, read, refuses

[SPEC] = engine_sim.engine_platforms()


def test_words_are_read_beside_indices():
    choice = DeviceChoice.parse("sim:3,static,memory=512MiB,raise@7,h200")
    options = read(choice.words)
    assert choice.indices == (3,)
    assert options.static
    assert not options.compiles
    assert options.memory == 512 * 2**20
    assert options.faults == {7: "raise"}
    assert options.profile == profile("h200")


def test_several_faults_may_be_asked_for():
    assert read(("oom@2", "garbage@5")).faults == {2: "oom", 5: "garbage"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("fast",), "unknown word 'fast'; there are static, compile"),
        (("raise@0",), "unknown word 'raise@0'"),
        (("memory=0MiB",), "unknown word"),
        (("memory=5",), "unknown word"),
        (("raise@3", "hang@3"), "step 3 has a fault already: raise"),
        (("h100", "h200"), "two data sheets: h100 and h200"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(words, reason):
    assert reason in refuses(words)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        read(words)


def test_every_data_sheet_is_a_word():
    assert all(refuses((name,)) is None for name in names())


def test_predictions_go_by_the_data_sheet_that_is_named():
    assert SPEC.profile("sim:h100,static") == profile("h100")
    assert SPEC.profile("sim") == OWN_PROFILE


def test_a_rank_computes_on_its_index():
    assert SimPlatform(EngineConfig(device="sim"), rank=2).device == "sim:2"
    assert SimPlatform(EngineConfig(device="sim:5,4,static"), rank=1).device == "sim:4"
    with pytest.raises(ConfigError, match="rank 1 has no device: --device names 1"):
        SimPlatform(EngineConfig(device="sim:5"), rank=1)


def test_importing_the_package_brings_no_torch():
    code = (
        "import sys, engine_sim\n"
        "[spec] = engine_sim.engine_platforms()\n"
        "assert spec.probe().devices == 8\n"
        "assert spec.refuses(('h200', 'static')) is None\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
