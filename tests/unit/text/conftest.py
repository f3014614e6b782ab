import pytest
from small_tokenizers import KINDS, byte_level, write

from engine.text import Tokenizer


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """By kind of decoder."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        kind: Tokenizer.load(str(write(build(), folder / kind))) for kind, build in KINDS.items()
    }


@pytest.fixture(scope="session")
def bytewise(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    """The one whose ids 0 to 255 are the bytes."""
    return tokenizers["byte_level"]


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer without a chat template."""
    return str(write(byte_level(), tmp_path_factory.mktemp("plain"), template=None))
