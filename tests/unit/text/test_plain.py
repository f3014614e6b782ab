"""What the tokenizers library reads alone is what transformers would have read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_tokenizers import KINDS, byte_level, write
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from engine.text.plain import PlainTokenizer

TEXT = "<s>Hello the  lo, naïve 你好 🎉\n\t<end>b the<think it over> a"
REAL = ["gpt2", "qwen2.5", "mistral-v3"]


def require_equal(folder: Path) -> None:
    plain = PlainTokenizer.read(folder)
    assert plain is not None
    oracle = TokenizersBackend.from_pretrained(str(folder), local_files_only=True)
    for special in (True, False):
        expected = oracle.encode(TEXT, add_special_tokens=special)
        assert plain.fast.encode(TEXT, add_special_tokens=special).ids == expected
    assert plain.fast.get_vocab_size() == len(oracle)
    assert (plain.bos_token_id, plain.eos_token_id) == (oracle.bos_token_id, oracle.eos_token_id)
    assert plain.chat_template == oracle.chat_template
    added = plain.fast.get_added_tokens_decoder()
    backend = oracle.backend_tokenizer.get_added_tokens_decoder()
    assert {id: repr(one) for id, one in added.items()} == {
        id: repr(one) for id, one in backend.items()
    }


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_saved_tokenizer_is_read_alike(kind: str, tmp_path: Path) -> None:
    require_equal(write(KINDS[kind](), tmp_path))


@pytest.mark.parametrize("name", REAL)
def test_a_published_tokenizer_is_read_alike(shared: Path, name: str) -> None:
    require_equal(shared / "tokenizers" / name)


@pytest.mark.parametrize(
    "settings",
    [
        {"chat_template": "{{ messages }}"},
        {"add_bos_token": True, "add_eos_token": True},  # not heeded where tokenizer.json is there
        {"bos_token": {"__type": "AddedToken", "content": "<s>", "special": True}},
        {"added_tokens_decoder": {"261": {"content": "<s>", "special": True}}},
        {"extra_special_tokens": ["<end>"]},
        {"model_max_length": 9, "padding_side": "left"},
    ],
)
def test_settings_that_change_nothing_are_read_alike(
    settings: dict[str, object], tmp_path: Path
) -> None:
    write(byte_level(), tmp_path, template=None)
    change(tmp_path / "tokenizer_config.json", **settings)
    require_equal(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"chat_template": [{"name": "default", "template": "a"}]},
        {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}},
        {"added_tokens_decoder": {"300": {"content": "<new>"}}},
        {"added_tokens_decoder": {"261": {"content": "<s>", "rstrip": True, "special": True}}},
        {"extra_special_tokens": ["<new>"]},
        {"additional_special_tokens": ["<think it over>"]},  # there, but not special
        {"extra_special_tokens": {"image_token": "<new>"}},
        {"image_token": "<s>"},
        {"unk_token": "<new>"},
        {"split_special_tokens": True},
        {"fix_mistral_regex": True},
    ],
)
def test_settings_that_may_change_something_are_left_to_transformers(
    settings: dict[str, object], tmp_path: Path
) -> None:
    write(byte_level(), tmp_path, template=None)
    change(tmp_path / "tokenizer_config.json", **settings)
    assert PlainTokenizer.read(tmp_path) is None


def test_files_of_older_versions_are_left_to_transformers(tmp_path: Path) -> None:
    write(byte_level(), tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<new>": 264}')
    assert PlainTokenizer.read(tmp_path) is None


def test_a_large_vocabulary_beside_a_suspect_model_is_left_to_transformers(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([f"<{number}>" for number in range(100_000)])
    write(tokenizer, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    assert PlainTokenizer.read(tmp_path) is None
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert PlainTokenizer.read(tmp_path) is not None


def test_text_needs_no_transformers_until_a_template_is_rendered(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from engine.text import Tokenizer\n"
        f"tokenizer = Tokenizer.load({str(write(byte_level(), tmp_path))!r})\n"
        "tokenizer.decode(tokenizer.encode('Hello'))\n"
        "print('transformers' in sys.modules)\n"
        "tokenizer.chat([{'role': 'user', 'content': 'x'}])\n"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert output.stdout.strip() == b"False"


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
