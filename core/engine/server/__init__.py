"""The HTTP server: the OpenAI API over an engine in a process of its own."""

from engine.server.options import ServerOptions
from engine.server.serve import serve

__all__ = ["ServerOptions", "serve"]
