import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Material that lies beside the repository: real models, tokenizers, templates, traces."""
    folder = Path(os.environ.get("ENGINE_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("no shared material: set ENGINE_SHARED to its folder")
    return folder.resolve()
