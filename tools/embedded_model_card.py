"""The model card of the embedded model: what it is for, how it was made, what it scored."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import LlamaConfig

from engine.embedded.world import Score


@dataclass(frozen=True, slots=True)
class Run:
    """What a training run was given and what it took; `num_tokens` leaves padding out."""

    seed: int
    num_steps: int
    num_threads: int
    device: str
    compiled: bool
    train_time_s: float
    num_tokens: int
    num_parameters: int
    scores: Mapping[torch.dtype, Mapping[str, Score]]


def model_card(run: Run, config: LlamaConfig) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    return _CARD.format(
        num_parameters=run.num_parameters,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        scores=_table(run.scores),
        command=_command(run),
        minutes=run.train_time_s / 60,
        num_tokens=run.num_tokens,
        num_steps=run.num_steps,
        machine=_machine(run),
        torch=torch.__version__,
        transformers=transformers.__version__,
        tokenizers=tokenizers.__version__,
    )


def total(marks: Mapping[str, Score]) -> Score:
    """All kinds together."""
    right = sum(mark.right for mark in marks.values())
    return Score(right, sum(mark.asked for mark in marks.values()))


def _table(scores: Mapping[torch.dtype, Mapping[str, Score]]) -> str:
    """One line per kind and one for all; a column per data type of the computation."""
    full, half = scores[torch.float32], scores[torch.bfloat16]
    lines = ["| kind | questions | right, float32 | right, bfloat16 |", "|---|---:|---:|---:|"]
    lines += [_row(kind, full[kind], half[kind]) for kind in full]
    lines.append(_row("**all**", total(full), total(half)))
    return "\n".join(lines)


def _row(kind: str, full: Score, half: Score) -> str:
    return f"| {kind} | {full.asked} | {full.share:.1%} | {half.share:.1%} |"


def _command(run: Run) -> str:
    compiled = "--compile" if run.compiled else "--no-compile"
    return (
        f"python tools/train_embedded_model.py --seed {run.seed} --steps {run.num_steps} "
        f"--device {run.device} --threads {run.num_threads} {compiled}"
    )


def _machine(run: Run) -> str:
    if run.device != "cpu":
        return torch.cuda.get_device_name(run.device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {run.num_threads} threads"


_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The embedded model

A Llama of {num_parameters:,} parameters, trained from nothing by this project and small enough to
ship inside the package. It answers questions of a small closed world, in which every answer can
be checked: a serving engine that garbles a cache, a mask or a batch gets wrong answers.

## Intended use

- Start a server, try its API and test it where nothing can be downloaded: chats of several turns,
  system messages, tools, tool calls and tool results.
- Tests and load generators: `engine.embedded.world` draws questions and checks the replies.
- It is no general assistant. To what lies outside its world it was trained to say
  "I do not know that."

## What it knows

Sums and differences of numbers up to 99 (none below zero), the times table up to 10, comparing two
numbers up to 99, sorting three or four of them, counting up to twelve of them, reversing three to
five letters or digits, repeating a few names, capitals of 40 countries, conversions of units,
colours, days and months, greetings, and the tools `get_weather` and `get_time`, which it calls with
a city where they are offered.

## Score

Held-out questions, replies generated greedily, right only if the whole reply is exactly right (a
tool call: the same JSON). The weights are the shipped ones, rounded to bfloat16; the columns are
the precision in which they are computed with.

{scores}

No held-out problem was seen in training. For `add`, `subtract`, `compare`, `sort`, `reverse`,
`repeat`, `count`, `tool_call`, `tool_answer`, `unknown` and units with a power of ten this goes by
content: no training question of that kind had those operands, that list or that name, in any
wording. For `multiply`, `capital`, `colour`, `calendar`, `chat` and the other units, which can
only be remembered, it goes by wording: the fact was seen, but not asked in these words.

Hard kinds are asked more often than easy ones, here as in training.

## Limits

- It knows the phrasings of `engine/embedded/turns.py` and little else: freely worded questions
  often get a wrong answer or a refusal, and a refusal is not certain where it would be right.
- English only. Calculations with larger numbers, longer lists or several steps are outside.
- Trained on chats of up to 640 tokens; up to {positions} positions can be computed, but what it
  says far beyond that length is of no worth.
- It invents no facts beyond its few, but checks none either: the tools' results are taken as given.

## Architecture

`LlamaForCausalLM`: {layers} layers, hidden size {hidden}, {heads} heads of {head_dim} with
{kv_heads} key/value heads, RoPE, tied embeddings. A byte-level BPE vocabulary of {vocabulary}
tokens: all 256 bytes are tokens, digits stay single. Chats are in ChatML with `<|im_end|>` at the
end of a reply; tools and tool calls are in the form of Hermes and Qwen.

## Training

    {command}

Made by that command, on data which the command generates itself and nothing else:
{num_steps:,} steps, {num_tokens:,} tokens seen, {minutes:.0f} minutes of training on
{machine}; torch {torch}, transformers {transformers}, tokenizers {tokenizers}. Seed, steps and
threads fix all that is random; another machine or library version may round differently and so
arrive at slightly different weights.

## Licence

Apache-2.0, the weights as well as the code.
"""
