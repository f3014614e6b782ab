from engine.batch import Logprobs
from engine.params import SamplingParams
from engine.request import Delta, Finish, Submission, Summary
from engine.text import Generation, OutputBuilder, Tokenizer

SUMMARY = Summary(
    num_prompt=1, num_output=2, num_cached=1, num_preemptions=0, queued_s=0, prefill_s=0, decode_s=0
)


def submission(**params: object) -> Submission:
    return Submission("r", (7, 8), SamplingParams(**params))  # type: ignore[arg-type]


def delta(text: bytes, index: int = 0, finish: Finish | None = None, **more: object) -> Delta:
    summary = SUMMARY if finish else None
    return Delta("r", index, tuple(text), finish=finish, summary=summary, **more)  # type: ignore[arg-type]


def logprobs(text: bytes) -> tuple[Logprobs, ...]:
    return tuple(Logprobs(value, -0.5, 1) for value in text)


def test_a_choice_ends_with_exactly_one_last_piece(bytewise: Tokenizer) -> None:
    generation = Generation(submission(), bytewise)
    first = generation.push(delta(b"ab"))
    last = generation.push(delta(b"c", finish=Finish.LENGTH))
    assert first is not None
    assert last is not None
    assert (first.text, first.finish, last.text, last.finish) == ("ab", None, "c", Finish.LENGTH)
    assert generation.done
    assert not generation.stopped
    assert generation.num_output == 3
    assert generation.summaries == {0: SUMMARY}


def test_what_comes_after_a_stop_string_is_dropped(bytewise: Tokenizer) -> None:
    generation = Generation(submission(stop=("b",), logprobs=0), bytewise)
    piece = generation.push(delta(b"abc", logprobs=logprobs(b"abc")))
    assert piece is not None
    assert (piece.text, piece.finish, piece.stop) == ("a", Finish.STOP, "b")
    assert piece.token_ids == tuple(b"ab")
    assert len(piece.logprobs) == 2
    assert generation.stopped
    assert generation.push(delta(b"def")) is None
    assert generation.push(delta(b"", finish=Finish.ABORT)) is None
    assert not generation.stopped
    assert generation.num_output == 2
    assert generation.summaries == {0: SUMMARY}


def test_one_stopped_choice_leaves_the_others_running(bytewise: Tokenizer) -> None:
    generation = Generation(submission(n=2, stop=("b",)), bytewise)
    generation.push(delta(b"ab", 1))
    assert not generation.done
    assert not generation.stopped
    piece = generation.push(delta(b"xy", 0, Finish.LENGTH))
    assert piece is not None
    assert (piece.index, piece.text) == (0, "xy")
    assert generation.done
    assert generation.stopped  # choice 1 goes on in the engine


def test_a_stop_string_in_the_last_tokens_wins_over_their_number(bytewise: Tokenizer) -> None:
    generation = Generation(submission(stop=("b",)), bytewise)
    piece = generation.push(delta(b"ab", finish=Finish.LENGTH))
    assert piece is not None
    assert (piece.finish, piece.stop) == (Finish.STOP, "b")
    assert not generation.stopped


def test_a_stop_token_is_named_unless_it_is_the_models_own(bytewise: Tokenizer) -> None:
    for eos, expected in (((), ord("b")), ((ord("b"),), None)):
        generation = Generation(submission(), bytewise, eos)
        piece = generation.push(delta(b"ab", finish=Finish.STOP, stop_id=ord("b")))
        assert piece is not None
        assert (piece.text, piece.finish, piece.stop) == ("a", Finish.STOP, expected)


def test_an_error_ends_the_choice_and_shows_what_was_held_back(bytewise: Tokenizer) -> None:
    generation = Generation(submission(stop=("bc",)), bytewise)
    generation.push(delta(b"ab"))
    piece = generation.push(delta(b"", finish=Finish.ERROR, error="broken"))
    assert piece is not None
    assert (piece.text, piece.finish, piece.error) == ("b", Finish.ERROR, "broken")


def test_without_a_tokenizer_there_are_ids_and_no_text() -> None:
    generation = Generation(submission(), None)
    piece = generation.push(delta(b"ab", finish=Finish.LENGTH))
    assert piece is not None
    assert (piece.text, piece.token_ids, piece.finish) == ("", (97, 98), Finish.LENGTH)


def test_an_output_gathers_everything(bytewise: Tokenizer) -> None:
    asked = submission(n=2, logprobs=0, prompt_logprobs=0)
    builder = OutputBuilder(asked, bytewise, prompt="text")
    builder.push(Delta("r", 0, prompt_logprobs=logprobs(b"p")))
    builder.push(delta(b"ab", 1, logprobs=logprobs(b"ab")))
    builder.push(delta(b"x", 0, Finish.LENGTH, logprobs=logprobs(b"x")))
    builder.push(delta(b"c", 1, Finish.LENGTH, logprobs=logprobs(b"c")))
    output = builder.result()
    assert (output.prompt, output.prompt_token_ids) == ("text", (7, 8))
    assert [choice.text for choice in output.outputs] == ["x", "abc"]
    assert [choice.cumulative_logprob for choice in output.outputs] == [-0.5, -1.5]
    assert output.outputs[1].finish_reason == "length"
    assert output.outputs[1].token_ids == tuple(b"abc")
    assert output.prompt_logprobs == (None, *logprobs(b"p"))
    assert output.num_cached_tokens == 1
