"""Train the embedded model from nothing: its data, its tokenizer, its weights, its model card.

    python tools/train_embedded_model.py

The seed and the number of steps fix everything that is random: with the same kind of machine, the
same library versions and the same number of threads the same weights come out. `--minutes` sets
the number of steps from the speed of the first ones; the card names the steps taken.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from random import Random

import torch
from embedded_model_card import Run, model_card, total
from embedded_tokenizer import END_OF_MESSAGE, START_OF_MESSAGE, train_tokenizer
from muon import Muon
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import engine.embedded
from engine.embedded.messages import as_message
from engine.embedded.world import Question, Score, questions, score

NUM_STEPS = 9000
NUM_UNTIMED_STEPS = 50  # they also compile
NUM_TIMED_STEPS = 100
BATCH_TOKENS = 2048
PEAK_LEARNING_RATE = 6e-3
NUM_WARMUP_STEPS = 100
VOCABULARY_SIZE = 768
LONGEST_CHAT_TOKENS = 640
POOL_CHATS = 1024
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat's tokens, and what each should predict: the next token of a reply, or IGNORED."""

    tokens: list[int]
    targets: list[int]


def main() -> None:
    options = parse_arguments()
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(options.threads)
    tokenizer = make_tokenizer(options.seed)
    model = make_model(tokenizer).to(options.device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{num_parameters:,} parameters, {len(tokenizer)} tokens", flush=True)

    started_s = time.monotonic()
    num_steps, num_tokens = train(model, tokenizer, options)
    train_time_s = time.monotonic() - started_s

    options.out.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, options.out)
    scores = {
        dtype: evaluate(load(options.out, dtype, options.device), tokenizer, options.questions)
        for dtype in (torch.float32, torch.bfloat16)
    }
    run = Run(
        seed=options.seed,
        num_steps=num_steps,
        num_threads=options.threads,
        device=options.device,
        compiled=options.compile,
        train_time_s=train_time_s,
        num_tokens=num_tokens,
        num_parameters=num_parameters,
        scores=scores,
    )
    (options.out / "README.md").write_text(model_card(run, model.config), encoding="utf-8")
    for dtype, marks in scores.items():
        print(f"in {dtype}:", summary(marks), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the embedded model from nothing.")
    parser.add_argument("--out", type=Path, default=engine.embedded.path())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--minutes", type=float, help="train about as long, instead of --steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--questions", type=int, default=4000, help="to evaluate with")
    return parser.parse_args()


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A tokenizer trained on chats of the world: on its words, and on the words of the form."""
    texts = []
    for question in questions(20_000, seed):
        texts += [f"{message['role']}\n{message['content']}" for message in question.messages]
        texts += [json.dumps(tool) for tool in question.tools] + [question.answer]
    return train_tokenizer(texts, VOCABULARY_SIZE)


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace
) -> tuple[int, int]:
    """Train the model in place; return the steps taken and the tokens seen, without padding."""
    optimizers = make_optimizers(model)
    decoder = torch.compile(model.model, dynamic=True) if options.compile else model.model
    num_steps, num_tokens, started_s = options.steps, 0, time.monotonic()
    timed_from_s = started_s
    losses: list[float] = []
    for step, (tokens_BT, targets_BT) in enumerate(batches(tokenizer, options.seed)):
        if step == NUM_UNTIMED_STEPS:
            timed_from_s = time.monotonic()
        if step == NUM_UNTIMED_STEPS + NUM_TIMED_STEPS and options.minutes:
            per_step_s = (time.monotonic() - timed_from_s) / NUM_TIMED_STEPS
            num_steps = int(options.minutes * 60 / per_step_s)
        if step == num_steps:
            break
        hidden_BTD = decoder(tokens_BT.to(options.device), use_cache=False).last_hidden_state
        loss = reply_loss(model.lm_head, hidden_BTD, targets_BT.to(options.device))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate(step, num_steps)
            optimizer.step()
        losses.append(loss.item())
        num_tokens += int((tokens_BT != tokenizer.pad_token_id).sum())
        if (step + 1) % 100 == 0:
            speed = num_tokens / (time.monotonic() - started_s)
            loss_100 = sum(losses[-100:]) / 100
            print(
                f"step {step + 1}/{num_steps}  loss {loss_100:.4f}  {speed:,.0f} tokens/s",
                flush=True,
            )
        if (step + 1) % 1000 == 0:
            save(model, tokenizer, options.out)
            print(summary(evaluate(model, tokenizer, 400)), flush=True)
    return step, num_tokens


def make_optimizers(model: LlamaForCausalLM) -> list[Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    taken = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    return [
        Muon(matrices, lr=0.0, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def summary(marks: dict[str, Score]) -> str:
    shares = ", ".join(f"{kind} {mark.share:.3f}" for kind, mark in marks.items())
    return f"held-out {total(marks).share:.4f}: {shares}"


def learning_rate(step: int, num_steps: int) -> float:
    """A short linear rise to the peak, then a linear fall to zero."""
    if step < NUM_WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / NUM_WARMUP_STEPS
    return PEAK_LEARNING_RATE * max(0.0, num_steps - step) / (num_steps - NUM_WARMUP_STEPS)


def reply_loss(lm_head: Module, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the replies' tokens; padding is on the right, so no mask is needed."""
    of_reply_BT = targets_BT != IGNORED
    return cross_entropy(lm_head(hidden_BTD[of_reply_BT]), targets_BT[of_reply_BT])


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of at most BATCH_TOKENS with padding: chats of about the same length."""
    random = Random(seed)
    for pool_index in range(1_000_000_000):
        pool_seed = seed * 1_000_000_000 + pool_index
        chats = [as_chat(question, tokenizer) for question in questions(POOL_CHATS, pool_seed)]
        chats = [chat for chat in chats if len(chat.tokens) <= LONGEST_CHAT_TOKENS]
        chats.sort(key=lambda chat: len(chat.tokens))
        rows = list(rows_of_similar_length(chats))
        random.shuffle(rows)
        assert tokenizer.pad_token_id is not None
        for row in rows:
            tokens_BT = padded([chat.tokens for chat in row], tokenizer.pad_token_id)
            yield tokens_BT, padded([chat.targets for chat in row], IGNORED)


def as_chat(question: Question, tokenizer: PreTrainedTokenizerFast) -> Chat:
    """Tokens and targets: only replies are learned, each with the token that ends it."""
    messages = [*question.messages, as_message(question.answer)]
    text = tokenizer.apply_chat_template(messages, tools=question.tools or None, tokenize=False)
    tokens: list[int] = tokenizer(text)["input_ids"]
    start, end = tokenizer.convert_tokens_to_ids([START_OF_MESSAGE, END_OF_MESSAGE])
    reply_header = tokenizer("assistant\n")["input_ids"]
    targets, position = [IGNORED] * len(tokens), 0
    while position < len(tokens):
        begin = position + 1 + len(reply_header)
        if tokens[position] == start and tokens[position + 1 : begin] == reply_header:
            stop = tokens.index(end, begin)
            targets[begin - 1 : stop] = tokens[begin : stop + 1]
            position = stop
        position += 1
    return Chat(tokens, targets)


def rows_of_similar_length(chats: Sequence[Chat]) -> Iterator[list[Chat]]:
    """Cut chats that are sorted by length into batches of at most BATCH_TOKENS with padding."""
    row: list[Chat] = []
    for chat in chats:
        if row and (len(row) + 1) * len(chat.tokens) > BATCH_TOKENS:
            yield row
            row = []
        row.append(chat)
    if row:
        yield row


def padded(rows: Sequence[list[int]], filler: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the checkpoint in bfloat16, with greedy decoding as its default."""
    rounded = LlamaForCausalLM(model.config).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    rounded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors lets only the owner read


def load(folder: Path, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """The shipped weights, computing in the given dtype."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(device)


def evaluate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, num_questions: int
) -> dict[str, Score]:
    """Ask held-out questions, generate greedily, count exact replies per kind."""
    asked = sorted(
        questions(num_questions, seed=1, split="held_out"),
        key=lambda question: len(prompt(question, tokenizer)),
    )
    rows = iter(lambda: list(islice(remaining, 100)), [])
    remaining = iter(asked)
    replies = chain.from_iterable(generate(model, tokenizer, row) for row in rows)
    return score(zip(asked, replies, strict=True))


def prompt(question: Question, tokenizer: PreTrainedTokenizerFast) -> str:
    text: str = tokenizer.apply_chat_template(
        list(question.messages),
        tools=list(question.tools) or None,
        tokenize=False,
        add_generation_prompt=True,
    )
    return text


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Question]
) -> list[str]:
    """Greedy replies; prompts are padded on the left so that all replies begin together."""
    prompts = [prompt(question, tokenizer) for question in asked]
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    output_BT = model.generate(
        input_ids=inputs["input_ids"].to(model.device),
        attention_mask=inputs["attention_mask"].to(model.device),
        max_new_tokens=128,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    reply_BT = output_BT[:, inputs["input_ids"].shape[1] :]
    return list(tokenizer.batch_decode(reply_BT, skip_special_tokens=True))


if __name__ == "__main__":
    main()
