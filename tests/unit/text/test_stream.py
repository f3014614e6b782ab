import random
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS

from engine.params import SamplingParams
from engine.request import Finish
from engine.text import TextStream, Tokenizer

EVERYTHING = SamplingParams(skip_special_tokens=False)
CLEAN = SamplingParams()

kinds = st.sampled_from(sorted(KINDS))
many_ids = st.lists(st.integers(0, 2000), max_size=40)


def joined(stream: TextStream, ids: list[int], cuts: list[int]) -> str:
    """The text of `ids`, pushed in the pieces that `cuts` make of them."""
    borders = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    parts = [ids[start:stop] for start, stop in pairwise(borders)]
    texts = [stream.push(part).text for part in parts]
    return "".join(texts) + stream.push([], Finish.LENGTH).text


@settings(max_examples=250)
@given(kinds, many_ids, st.lists(st.integers(0, 40), max_size=5), st.booleans())
def test_the_pieces_joined_are_the_plain_decoding(
    tokenizers: dict[str, Tokenizer], kind: str, raw: list[int], cuts: list[int], skip: bool
) -> None:
    tokenizer = tokenizers[kind]
    ids = [id % (tokenizer.vocab_size + 2) for id in raw]  # two that the tokenizer does not know
    params = CLEAN if skip else EVERYTHING
    text = joined(TextStream(tokenizer, params), ids, cuts)
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=250)
@given(kinds, many_ids, many_ids)
def test_after_a_prompt_they_are_what_the_tokens_add_to_it(
    tokenizers: dict[str, Tokenizer], kind: str, raw_prompt: list[int], raw: list[int]
) -> None:
    tokenizer = tokenizers[kind]
    size = tokenizer.vocab_size
    plain = [id for id in range(size) if id not in tokenizer.special_ids]
    prompt = [plain[id % len(plain)] for id in raw_prompt if plain[id % len(plain)] < size]
    ids = [id % size for id in raw]
    before = tokenizer.decode(prompt)
    if before.endswith("\ufffd") or (prompt and prompt[-1] in tokenizer.byte_ids):
        return  # the prompt ends inside a character: see below
    text = joined(TextStream(tokenizer, CLEAN, prompt), ids, [])
    assert before + text == tokenizer.decode([*prompt, *ids])


def test_a_character_that_the_prompt_began_is_given_out_whole(
    tokenizers: dict[str, Tokenizer],
) -> None:
    first, second, third = "你".encode()
    bytewise = TextStream(tokenizers["byte_level"], CLEAN, [*b"so ", first, second])
    assert bytewise.push([third, *b"!"]).text == "你!"
    pieces = tokenizers["sentence_piece"]
    a, b, c = pieces.encode("x好"[1:])[-3:]
    stream = TextStream(pieces, CLEAN, [*pieces.encode("lo"), a, b])
    assert stream.push([c, *pieces.encode(".")[-1:]]).text == "好."


def test_no_character_is_ever_split(bytewise: Tokenizer) -> None:
    text = "naïve 你好 🎉🏽 é"
    stream = TextStream(bytewise, CLEAN)
    pieces = [stream.push([value]).text for value in text.encode()]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert sum(bool(piece) for piece in pieces) == len(text)  # each as soon as it is complete


def test_bytes_that_are_no_text_come_out_as_replacement_characters(bytewise: Tokenizer) -> None:
    stream = TextStream(bytewise, CLEAN)
    assert stream.push([0xE4, 0xBD]).text == ""
    assert stream.push([ord("a")]).text == "\ufffda"
    assert stream.push([0xF0, 0x9F]).text == ""
    assert stream.push([], Finish.LENGTH).text == "\ufffd"


def test_an_answer_after_a_special_token_starts_like_a_text_of_its_own(
    tokenizers: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers["sentence_piece"]
    word = tokenizer.encode("a", add_special_tokens=False)
    prompt = [*tokenizer.encode("lo"), *tokenizer.encode("<end>")[-1:]]
    assert TextStream(tokenizer, CLEAN, prompt).push(word, Finish.LENGTH).text == "a"
    assert TextStream(tokenizer, CLEAN, prompt[:-1]).push(word, Finish.LENGTH).text == " a"


def test_a_stop_string_is_found_across_tokens_and_cut(bytewise: Tokenizer) -> None:
    stream = TextStream(bytewise, SamplingParams(stop=("END", "never")))
    assert stream.push([*b"some E"]).text == "some "
    assert stream.push([*b"N"]).text == ""
    piece = stream.push([*b"D and more"])
    assert (piece.text, piece.stop, piece.token_ids) == ("", "END", (ord("D"),))


def test_a_stop_string_that_does_not_come_is_given_out_late(bytewise: Tokenizer) -> None:
    stream = TextStream(bytewise, SamplingParams(stop=("END",)))
    assert stream.push([*b"some EN"]).text == "some "
    assert stream.push([*b"T"]).text == "ENT"
    assert stream.push([*b"EN"]).text == ""
    last = stream.push([], Finish.LENGTH)
    assert (last.text, last.stop) == ("EN", None)


def test_the_stop_string_stays_where_it_is_asked_for(bytewise: Tokenizer) -> None:
    stream = TextStream(bytewise, SamplingParams(stop=(".",), include_stop_str_in_output=True))
    piece = stream.push([*b"one. two."])
    assert (piece.text, piece.stop, piece.token_ids) == ("one.", ".", tuple(b"one."))


def test_a_stop_string_that_only_the_last_flush_completes_is_found(bytewise: Tokenizer) -> None:
    stream = TextStream(bytewise, SamplingParams(stop=("a\ufffd",)))
    piece = stream.push([*b"xa", 0xE4], Finish.LENGTH)
    assert (piece.text, piece.stop) == ("x", "a\ufffd")


def test_no_stop_string_ends_a_text_of_too_few_tokens(bytewise: Tokenizer) -> None:
    stream = TextStream(bytewise, SamplingParams(stop=("b",), min_tokens=3))
    piece = stream.push([*b"abbab"])
    assert (piece.text, piece.stop, len(piece.token_ids)) == ("abba", "b", 5)


def test_the_text_of_the_token_that_ended_the_request_is_left_out(bytewise: Tokenizer) -> None:
    ids = [*b"abc"]
    assert TextStream(bytewise, CLEAN).push(ids, Finish.STOP).text == "ab"
    assert TextStream(bytewise, CLEAN).push(ids, Finish.LENGTH).text == "abc"
    include = SamplingParams(include_stop_str_in_output=True)
    assert TextStream(bytewise, include).push(ids, Finish.STOP).text == "abc"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_time_grows_with_the_tokens_and_not_their_square(
    tokenizers: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = tokenizers[kind]
    for repeated in {tokenizer.encode("你", add_special_tokens=False)[0], 2, 3, 0xBD}:
        stream = TextStream(tokenizer, SamplingParams(stop=("zzz",), skip_special_tokens=False))
        began = time.perf_counter()
        for _ in range(5_000):
            stream.push([repeated % tokenizer.vocab_size])
        stream.push([], Finish.LENGTH)
        assert time.perf_counter() - began < 4  # the square takes half a minute


@pytest.mark.parametrize(
    "folder", ["tokenizers/gpt2", "tokenizers/qwen2.5", "tokenizers/mistral-v3"]
)
def test_real_tokenizers_random_ids_give_the_plain_decoding(shared: Path, folder: str) -> None:
    tokenizer = Tokenizer.load(str(shared / folder))
    randomness = random.Random(0)
    for trial in range(150):
        ids = [randomness.randrange(tokenizer.vocab_size) for _ in range(40)]
        if trial % 2:  # bytes, which seldom come by chance
            ids[5:25] = [randomness.randrange(800) for _ in range(20)]
        for skip in (True, False):
            stream = TextStream(tokenizer, SamplingParams(skip_special_tokens=skip))
            expected = tokenizer.decode(ids, skip_special_tokens=skip)
            assert joined(stream, ids, list(range(40))) == expected
