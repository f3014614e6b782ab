"""The routes. Each reads its body, calls the function that knows, and writes JSON."""

from typing import Any, Final, TypeVar

import msgspec
from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from engine import __version__
from engine.errors import EngineError
from engine.server.body import read_body
from engine.server.guards import AnswerCount, KeyGuard
from engine.server.metrics import CONTENT_TYPE
from engine.server.openai.chat import chat
from engine.server.openai.completions import complete
from engine.server.openai.errors import HttpError, from_engine, unavailable
from engine.server.openai.json import decode, json_response
from engine.server.openai.models import list_models, model_card
from engine.server.openai.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from engine.server.openai.tokens import detokenize, tokenize
from engine.server.service import Service
from engine.server.sse import ClientLeftError

T = TypeVar("T")

CLIENT_LEFT: Final = 499  # nobody reads it; it is for the log and the count of answers

_BODIES: Final = (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)
_REFERENCE: Final = "#/components/schemas/{name}"


def create_app(service: Service) -> FastAPI:
    """The whole HTTP surface over one `service`."""
    app = _App(title="engine", version=__version__, docs_url=None, redoc_url=None)
    app.include_router(_open_ai(service))
    app.include_router(_operations(service))
    app.add_exception_handler(HTTPException, _routing_error)
    app.add_exception_handler(HttpError, _http_error)
    app.add_exception_handler(EngineError, _engine_error)
    app.add_exception_handler(ClientLeftError, _client_left)
    app.add_exception_handler(Exception, _own_mistake)
    if service.options.api_keys:
        app.add_middleware(KeyGuard, keys=service.options.api_keys)
    if service.options.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.options.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    app.add_middleware(AnswerCount, metrics=service.metrics)
    return app


def _open_ai(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", openapi_extra=_takes(CompletionRequest))
    async def completions(request: Request) -> Response:
        asked = await _read(service, request, CompletionRequest)
        return await complete(service, asked, request.receive)

    @router.post("/v1/chat/completions", openapi_extra=_takes(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        asked = await _read(service, request, ChatRequest)
        return await chat(service, asked, request.receive)

    @router.get("/v1/models")
    async def models() -> Response:
        return json_response(list_models(service))

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return json_response(model_card(service, name))

    @router.post("/tokenize", openapi_extra=_takes(TokenizeRequest))
    async def to_tokens(request: Request) -> Response:
        return json_response(
            await tokenize(service, await _read(service, request, TokenizeRequest))
        )

    @router.post("/detokenize", openapi_extra=_takes(DetokenizeRequest))
    async def to_text(request: Request) -> Response:
        asked = await _read(service, request, DetokenizeRequest)
        return json_response(await detokenize(service, asked))

    return router


def _operations(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    @router.get("/ping")
    @router.post("/ping")
    async def health() -> Response:
        if (reason := service.unhealthy) is not None:
            raise unavailable(reason)
        return Response()

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    @router.get("/version")
    async def version() -> Response:
        return Response(
            msgspec.json.encode({"version": __version__}), media_type="application/json"
        )

    return router


async def _read(service: Service, request: Request, type: type[T]) -> T:
    """The request's body as `type`, where the server is open for it at all."""
    service.check_open()
    options = service.options
    return decode(await read_body(request, options.max_body_bytes, options.body_timeout_s), type)


class _App(FastAPI):
    """FastAPI, with the bodies' descriptions that msgspec made."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        _, schemas = msgspec.json.schema_components(_BODIES, ref_template=_REFERENCE)
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
        return document


def _takes(type: type[msgspec.Struct]) -> dict[str, Any]:
    reference = {"$ref": _REFERENCE.format(name=type.__name__)}
    content = {"application/json": {"schema": reference}}
    return {"requestBody": {"required": True, "content": content}}


async def _routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"There is no {request.url.path[:100]} here; see /openapi.json for what there is",
        405: f"{request.method[:20]} is not possible on {request.url.path[:100]}",
    }.get(error.status_code, str(error.detail))
    return HttpError(error.status_code, message, headers=error.headers).response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return error.response()


async def _engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return from_engine(error).response()


async def _client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _own_mistake(request: Request, error: Exception) -> Response:
    """What went wrong is for the log alone, which the server's own handler writes."""
    return HttpError(500, "The server failed on this request; its log has the reason").response()
