"""Many prompts or conversations at once, checked before any of them is computed."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from engine.errors import RequestError
from engine.facts import EngineFacts
from engine.params import SamplingParams
from engine.text.output import OutputBuilder
from engine.text.prepare import prepare
from engine.text.tokenizer import Message, Tokenizer

#: Text or token ids.
Prompt: TypeAlias = str | Sequence[int]
#: For all prompts, or one each. None: the defaults.
Params: TypeAlias = SamplingParams | Sequence[SamplingParams] | None
#: One, or several.
Conversations: TypeAlias = Sequence[Message] | Sequence[Sequence[Message]]
#: As in the OpenAI API: {"type": "function", "function": {…}}.
Tools: TypeAlias = Sequence[Mapping[str, Any]] | None


class Intake:
    """Makes submissions, and what will collect their outputs.

    Everything here raises RequestError for what cannot be served; where there are several, the
    message names the index.
    """

    def __init__(self, facts: EngineFacts, tokenizer: Tokenizer | None) -> None:
        self.facts = facts
        self.tokenizer = tokenizer

    def prompts(self, prompts: Prompt | Sequence[Prompt], params: Params) -> list[OutputBuilder]:
        """One for each prompt, in order. Without `params`: `SamplingParams()`."""
        several = _prompts(prompts)
        each = _spread(SamplingParams() if params is None else params, len(several))
        builders = []
        for index, (prompt, own) in enumerate(zip(several, each, strict=True)):
            try:
                builders.append(self._builder(prompt, own))
            except RequestError as error:
                raise numbered(error, index, len(several)) from error
        return builders

    def conversations(
        self,
        conversations: Conversations,
        params: Params,
        tools: Tools,
        template_options: Mapping[str, Any],
    ) -> list[OutputBuilder]:
        """One for each conversation. Without `params`: up to the end of the model's turn."""
        several = _conversations(conversations)
        each = _spread(SamplingParams(max_tokens=None) if params is None else params, len(several))
        builders = []
        for index, (messages, own) in enumerate(zip(several, each, strict=True)):
            try:
                text = self._render(messages, tools, template_options)
                builders.append(self._builder(text, own, add_special_tokens=False))
            except RequestError as error:
                raise numbered(error, index, len(several)) from error
        return builders

    def _render(
        self, messages: Sequence[Message], tools: Tools, template_options: Mapping[str, Any]
    ) -> str:
        if self.tokenizer is None:
            raise RequestError(
                f"model {self.facts.model.name} has no tokenizer: it cannot chat, but continue"
                " token ids",
                "messages",
            )
        return self.tokenizer.render(messages, tools=tools, **template_options)

    def _builder(
        self, prompt: Prompt, params: SamplingParams, *, add_special_tokens: bool = True
    ) -> OutputBuilder:
        submission = prepare(
            prompt,
            params,
            facts=self.facts,
            tokenizer=self.tokenizer,
            add_special_tokens=add_special_tokens,
        )
        text = prompt if isinstance(prompt, str) else None
        eos = self.facts.model.eos_token_ids
        return OutputBuilder(submission, self.tokenizer, eos, prompt=text)


def numbered(error: RequestError, index: int, count: int) -> RequestError:
    """The error with the index of the prompt at fault, where there are several."""
    if count == 1:
        return error
    return type(error)(f"prompt {index}: {error}", error.parameter)


def _prompts(given: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(given, str):
        return [given]
    several: list[Prompt] = []
    ids: list[int] = []
    for item in given:
        if isinstance(item, int):
            ids.append(item)
        else:
            several.append(item)
    if ids and several:
        raise RequestError("token ids and whole prompts cannot be mixed in one list", "prompt")
    return [ids] if ids else several


def _conversations(given: Conversations) -> list[Sequence[Message]]:
    several: list[Sequence[Message]] = []
    messages: list[Message] = []
    for item in given:
        if isinstance(item, Mapping):
            messages.append(item)
        else:
            several.append(item)
    if messages and several:
        raise RequestError("messages and whole conversations cannot be mixed", "messages")
    return [messages] if messages else several


def _spread(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise RequestError(f"there are {len(params)} sampling parameters for {count} prompts")
    return list(params)
