from pathlib import Path

import pytest
from plugin_packages import PACKAGES, install


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH into which pip has installed all of `plugin_packages.PACKAGES`."""
    return install(tmp_path_factory.mktemp("plugins") / "installed", *PACKAGES)
