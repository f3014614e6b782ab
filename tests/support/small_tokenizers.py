"""Small tokenizers of every kind of decoder, built on the spot."""

from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ('user', 'assistant') %}"
    "{{ raise_exception('only user and assistant can speak') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}<end>{% endfor %}"
    "{{ mood or '' }}{% for tool in tools or [] %}({{ tool.function.name }}){% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_level() -> RustTokenizer:
    """Ids 0 to 255 are the bytes, then some merges; then <s>, <end> and, not special, <think>."""
    characters = bytes_to_unicode()
    vocabulary = {characters[value]: value for value in range(256)}
    merges = []
    for pair in ("é", "th", "he", " t", " a"):
        first, second = (characters[value] for value in pair.encode())
        vocabulary[first + second] = len(vocabulary)
        merges.append((first, second))
    tokenizer = RustTokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("<end>")])
    tokenizer.add_tokens([AddedToken("<think it over>")])
    return tokenizer


def sentence_piece(*, strip: bool) -> RustTokenizer:
    """Words with a leading ▁, and a token for every byte (Llama 2's way, or Gemma's)."""
    pieces = ["<unk>", "<s>", "<end>", *(f"<0x{value:02X}>" for value in range(256))]
    pieces += ["▁", "▁▁", "▁the", "▁a", "▁He", "l", "lo", "o", "a", "b", ".", "\n", "你", "\ufffd"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("l", "o"), ("▁", "▁"), ("▁", "a")]
    tokenizer = RustTokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        steps.append(decoders.Strip(content=" ", left=1))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken("<unk>"), AddedToken("<s>"), AddedToken("<end>")])
    return tokenizer


def metaspace() -> RustTokenizer:
    """Words with a leading ▁, through the decoder made for them."""
    pieces = ["<unk>", "<s>", "▁", "▁▁", "▁the", "▁a", "lo", "a", "b", ".", "é", "<end>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = RustTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("<end>")])
    return tokenizer


def word_level() -> RustTokenizer:
    """No decoder at all: tokens are joined with spaces."""
    pieces = ["<unk>", "<s>", "the", "cat", "é", "<end>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = RustTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("<end>")])
    return tokenizer


KINDS = {
    "byte_level": byte_level,
    "sentence_piece": lambda: sentence_piece(strip=True),
    "sentence_piece_unstripped": lambda: sentence_piece(strip=False),
    "metaspace": metaspace,
    "word_level": word_level,
}


def write(tokenizer: RustTokenizer, folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """The tokenizer's files, as a model's folder has them."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<end>"
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    return folder
