"""POST /tokenize and /detokenize: a request's token ids without running it."""

from engine.errors import RequestError
from engine.server.openai.chat import chat_tokens
from engine.server.openai.errors import unsupported
from engine.server.openai.requests import DetokenizeRequest, TokenizeRequest
from engine.server.openai.responses import Text, Tokens
from engine.server.service import Service
from engine.text import Tokenizer


async def tokenize(service: Service, request: TokenizeRequest) -> Tokens:
    """The ids that the completions (`prompt`) or chat (`messages`) endpoint would run.

    Raises:
        RequestError: neither or both were given, or they are not valid.
    """
    service.check_model(request.model)
    tokenizer = _tokenizer(service)
    if request.chat_template is not None:
        raise unsupported("chat_template", "chat_template: chosen at start, with --chat-template")
    if (request.prompt is None) == (request.messages is None):
        raise RequestError("Exactly one of prompt and messages is required", "prompt")
    if request.prompt is None:
        ids = await chat_tokens(service, request)
    else:
        text, special = request.prompt, request.add_special_tokens is not False
        ids = await service.tokenize(
            len(text), lambda: tokenizer.encode(text, add_special_tokens=special)
        )
    texts = [tokenizer.token_text(id) for id in ids] if request.return_token_strs else None
    return Tokens(len(ids), service.facts.max_model_len, ids, texts)


async def detokenize(service: Service, request: DetokenizeRequest) -> Text:
    """The text of token ids, special ones included.

    Raises:
        RequestError: an id is outside the vocabulary.
    """
    service.check_model(request.model)
    tokenizer = _tokenizer(service)
    limit = max(tokenizer.vocab_size, service.facts.model.vocab_size)
    for id in request.tokens:
        if not 0 <= id < limit:
            raise RequestError(
                f"tokens: id {id} is outside the vocabulary; ids go from 0 to {limit - 1}", "tokens"
            )
    return Text(
        await service.tokenize(
            len(request.tokens) * 4,
            lambda: tokenizer.decode(request.tokens, skip_special_tokens=False),
        )
    )


def _tokenizer(service: Service) -> Tokenizer:
    if service.tokenizer is None:
        raise RequestError("This model has no tokenizer: it takes and gives token ids only")
    return service.tokenizer
