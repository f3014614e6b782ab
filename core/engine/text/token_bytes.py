"""Which bytes a token stands for, where the tokenizer's decoder is made of bytes."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


class ByteTable:
    """Bytes of every token, of tokenizers that write bytes as printable characters (GPT-2's way).

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), 2.2.
    """

    def __init__(self, fast: "tokenizers.Tokenizer") -> None:
        self._fast = fast
        self._byte_of = _printable_bytes()

    def __getitem__(self, id: int) -> bytes:
        token = self._fast.id_to_token(id)
        if token is None:
            return b""
        try:
            return bytes([self._byte_of[character] for character in token])
        except KeyError:  # an added token, written as it is
            return token.encode()


def decoder_kinds(fast: "tokenizers.Tokenizer | None") -> list[str]:
    """The decoder's steps by name: ["ByteLevel"], ["Replace", "ByteFallback", "Fuse"], …"""
    if fast is None or fast.decoder is None:
        return []
    decoder = json.loads(fast.decoder.__getstate__())
    return [step["type"] for step in decoder.get("decoders", [decoder])]


def byte_ids(fast: "tokenizers.Tokenizer | None") -> dict[int, bytes]:
    """Tokens that stand for one byte of what the vocabulary cannot write: <0x00> … <0xFF>."""
    found: dict[int, bytes] = {}
    for value in range(256 if fast else 0):
        id = fast.token_to_id(f"<0x{value:02X}>") if fast else None
        if id is not None:
            found[id] = bytes([value])
    return found


def _printable_bytes() -> dict[str, int]:
    """Character to byte: printable Latin-1 stands for itself, the rest comes from U+0100 on."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = (value for value in range(256) if value not in itself)
    return {chr(value): value for value in itself} | {
        chr(0x100 + position): value for position, value in enumerate(moved)
    }
