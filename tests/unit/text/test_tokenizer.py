import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_tokenizers import KINDS, byte_level, write
from transformers import AutoTokenizer

from engine.errors import ModelError, RequestError
from engine.text import Tokenizer

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_decodes_as_transformers_does(
    tokenizers: dict[str, Tokenizer], kind: str, tmp_path: Path
) -> None:
    tokenizer = tokenizers[kind]
    oracle = AutoTokenizer.from_pretrained(write(KINDS[kind](), tmp_path))
    for start in range(0, tokenizer.vocab_size, 3):
        ids = [(start + step * step) % tokenizer.vocab_size for step in range(12)]
        for skip in (True, False):
            expected = oracle.decode(ids, skip_special_tokens=skip)
            assert tokenizer.decode(ids, skip_special_tokens=skip) == expected
    assert tokenizer.vocab_size == len(oracle)
    assert tokenizer.bos_token_id == oracle.bos_token_id
    assert tokenizer.eos_token_id == oracle.eos_token_id
    assert tokenizer.special_ids >= {oracle.bos_token_id, oracle.eos_token_id}


@pytest.mark.parametrize("name", ["gpt2", "qwen2.5", "mistral-v3"])
def test_published_ids_of_real_tokenizers(shared: Path, name: str) -> None:
    folder = shared / "tokenizers" / name
    tokenizer = Tokenizer.load(str(folder))
    for vector in json.loads((folder / "vectors.json").read_text()):
        assert tokenizer.encode(vector["text"], add_special_tokens=False) == vector["ids"]


@pytest.mark.parametrize("name", ["gpt2", "qwen2.5", "mistral-v3"])
def test_the_tokens_of_a_real_text_have_its_bytes(shared: Path, name: str) -> None:
    tokenizer = Tokenizer.load(str(shared / "tokenizers" / name))
    text = "It's naïve, 你好 🎉: a\n\tb"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode().removeprefix(" ") == text


def test_special_tokens_surround_a_prompt_only_where_asked(shared: Path) -> None:
    tokenizer = Tokenizer.load(str(shared / "tokenizers/mistral-v3"))
    assert tokenizer.encode("Hello world") == [1, 23325, 2294]
    assert tokenizer.encode("Hello world", add_special_tokens=False) == [23325, 2294]


def test_chat_templates_render_as_published(shared: Path, bytewise: Tokenizer) -> None:
    folder = shared / "chat_templates"
    material = json.loads((folder / "expected_renderings.json").read_text())
    variables = {key: material[key] for key in ("bos_token", "eos_token")}
    num_checked = 0
    for name, renderings in material["rendered"].items():
        template = (folder / "templates" / name).read_text()
        if "strftime_now" in template:
            continue  # their date is fixed, ours is today's
        for conversation, expected in renderings.items():
            asked = {"tools": None, **material["conversations"][conversation]}
            if isinstance(expected, dict):
                with pytest.raises(RequestError, match="template"):
                    bytewise.render(**asked, template=template, **variables)
            else:
                assert bytewise.render(**asked, template=template, **variables) == expected
            num_checked += 1
    assert num_checked > 30


def test_a_conversation_becomes_the_templates_text_in_tokens(bytewise: Tokenizer) -> None:
    assert bytewise.render(HELLO) == "<s>[user]Hi<end>[assistant]"
    ids = bytewise.chat(HELLO)
    assert ids[0] == bytewise.bos_token_id
    assert ids.count(bytewise.bos_token_id or -1) == 1
    assert bytewise.decode(ids, skip_special_tokens=False) == "<s>[user]Hi<end>[assistant]"


def test_the_last_message_can_be_continued(bytewise: Tokenizer) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Well"}]
    text = bytewise.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert text == "<s>[user]Hi<end>[assistant]Well"
    with pytest.raises(RequestError, match="exclude") as caught:
        bytewise.render(messages, continue_final_message=True)
    assert caught.value.parameter == "continue_final_message"


def test_templates_see_tools_and_variables_of_their_own(bytewise: Tokenizer) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    text = bytewise.render(HELLO, tools=tools, mood="!")
    assert text == "<s>[user]Hi<end>!(look)[assistant]"
    assert bytewise.render(HELLO, template="{{ messages[0].content }}?") == "Hi?"


def test_a_template_that_refuses_says_why(bytewise: Tokenizer) -> None:
    with pytest.raises(RequestError, match="only user and assistant can speak") as caught:
        bytewise.chat([{"role": "system", "content": "Be brief"}])
    assert caught.value.parameter == "messages"
    with pytest.raises(RequestError, match="must not be empty"):
        bytewise.chat([])
    with pytest.raises(RequestError, match="template refused"):
        bytewise.chat(HELLO, template="{% if %}")


def test_template_variables_cannot_reach_the_renderers_own_settings(bytewise: Tokenizer) -> None:
    for name in ("chat_template", "tokenize", "conversation"):
        with pytest.raises(RequestError, match=name):
            bytewise.render(HELLO, **{name: "x"})


def test_a_template_cannot_reach_into_python(bytewise: Tokenizer) -> None:
    with pytest.raises(RequestError, match="template refused"):
        bytewise.render(HELLO, template="{{ messages.__class__.__mro__[1].__subclasses__() }}")


def test_a_model_without_template_cannot_chat_but_borrow_one(plain_folder: str) -> None:
    tokenizer = Tokenizer.load(plain_folder)
    assert tokenizer.chat_template is None
    with pytest.raises(RequestError, match="no chat template"):
        tokenizer.chat(HELLO)
    assert tokenizer.render(HELLO, template="{{ messages[0].content }}") == "Hi"


def test_token_texts_are_as_in_the_middle_of_a_text(tokenizers: dict[str, Tokenizer]) -> None:
    bytewise, pieces = tokenizers["byte_level"], tokenizers["sentence_piece"]
    assert bytewise.token_text(ord("a")) == "a"
    assert bytewise.token_text(0xE4) == "\ufffd"
    assert bytewise.token_bytes(0xE4) == b"\xe4"
    assert bytewise.token_text(bytewise.eos_token_id or 0) == "<end>"
    assert bytewise.token_text(9999) == ""
    [a] = pieces.encode("a", add_special_tokens=False)
    assert pieces.decode([a]) == "a"
    assert pieces.token_text(a) == " a"
    assert pieces.token_bytes(pieces.encode("好")[-1]) == "好".encode()[-1:]
    assert pieces.token_text(1) == "<s>"


def test_half_a_surrogate_pair_is_refused(bytewise: Tokenizer) -> None:
    with pytest.raises(RequestError, match="valid Unicode"):
        bytewise.encode("a\ud83cb")
    with pytest.raises(RequestError, match="valid Unicode"):
        bytewise.chat([{"role": "user", "content": "\ud83c"}])


def test_a_file_that_asks_for_truncation_does_not_get_it(tmp_path: Path) -> None:
    cutting = byte_level()
    cutting.enable_truncation(4)
    cutting.enable_padding(length=8)
    tokenizer = Tokenizer.load(str(write(cutting, tmp_path)))
    assert tokenizer.encode("abcdefghijkl") == [*b"abcdefghijkl"]
    assert tokenizer.encode("a") == [*b"a"]


def test_a_folder_without_tokenizer_is_told_from_a_broken_one(tmp_path: Path) -> None:
    assert Tokenizer.find(str(tmp_path)) is None
    with pytest.raises(ModelError, match=r"no tokenizer: none of tokenizer\.json"):
        Tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be used"):
        Tokenizer.find(str(tmp_path))


def test_text_needs_no_torch(plain_folder: str) -> None:
    program = (
        "import sys\n"
        "from engine.text import Tokenizer\n"
        f"tokenizer = Tokenizer.load({plain_folder!r})\n"
        "tokenizer.decode(tokenizer.encode('Hello'))\n"
        "tokenizer.chat([{'role': 'user', 'content': 'x'}], template='{{ messages[0].content }}')\n"
        "print('torch' in sys.modules)\n"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert output.stdout.strip() == b"False"
