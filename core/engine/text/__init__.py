"""Between text and token ids: tokenizer, chat template, incremental detokenizing, submissions."""

from engine.text.generation import Generation, Piece
from engine.text.output import CompletionOutput, OutputBuilder, RequestOutput
from engine.text.prepare import prepare
from engine.text.stream import TextPiece, TextStream
from engine.text.tokenizer import Message, Tokenizer

__all__ = [
    "CompletionOutput",
    "Generation",
    "Message",
    "OutputBuilder",
    "Piece",
    "RequestOutput",
    "TextPiece",
    "TextStream",
    "Tokenizer",
    "prepare",
]
