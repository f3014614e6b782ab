"""The Acme NPU's plugin from its source folder, as an example of a platform that is right."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ACME = ROOT / "plugins" / "acme_npu"


@pytest.fixture
def acme(monkeypatch):
    """Its package, importable here and in processes started from here; forgotten afterwards."""
    monkeypatch.syspath_prepend(str(ACME))
    monkeypatch.setenv("PYTHONPATH", str(ACME))
    import engine_acme_npu
    import engine_acme_npu.platform

    yield engine_acme_npu
    for name in [name for name in sys.modules if name.startswith("engine_acme_npu")]:
        del sys.modules[name]
