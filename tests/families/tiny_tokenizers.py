"""Tokenizers of the families' own classes with the bytes for a vocabulary."""

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import GemmaTokenizer, Qwen2Tokenizer, T5Tokenizer

# The words that these merges make take one token each, as in a real vocabulary.
_CLIP_MERGES = [
    ("r", "o"),
    ("ro", "b"),
    ("o", "t</w>"),
    ("rob", "ot</w>"),
    ("s", "k"),
    ("sk", "s</w>"),
]
# The part of Qwen3's template that messages without tools and without reasoning go through.
_QWEN_CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
# The part of Mistral Small's template that a system message and one of a user go through.
_MISTRAL_CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['content'] is string %}
        {%- set content = message['content'] %}
    {%- else %}
        {%- set content = message['content'][0]['text'] %}
    {%- endif %}
    {%- if message['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' + content + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'user' %}
        {{- '[INST]' + content + '[/INST]' }}
    {%- endif %}
{%- endfor %}"""
_MISTRAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
)
_QWEN_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_TOKENS = (*_QWEN_SPECIAL_TOKENS, "<think>", "</think>")


def write_clip_vocabulary(folder: Path) -> int:
    """Write vocab.json and merges.txt in CLIP's form; returns the vocabulary's size.

    As in CLIP's own, `!` is the first token and `<|endoftext|>` the last one.
    """
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + k) for k in range(256 - len(letters))]
    words = [*letters, *(f"{x}</w>" for x in letters), *(a + b for a, b in _CLIP_MERGES)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in _CLIP_MERGES), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    return len(vocabulary)


def write_t5_tokenizer(folder: Path) -> int:
    """Write a tokenizer with a token for each letter; returns the vocabulary's size."""
    letters = [(chr(code), -2.0) for code in range(33, 127)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=special + letters, extra_ids=0, model_max_length=512)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_gemma_tokenizer(folder: Path) -> int:
    """Write a tokenizer with a token for each letter; returns the vocabulary's size."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\n", "▁"]
    words += [chr(code) for code in range(33, 127)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = GemmaTokenizer(vocab=vocabulary, add_bos_token=True)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_mistral_tokenizer(folder: Path) -> int:
    """Add what a folder with a tokenizer_config.json lacks; returns the vocabulary's size.

    Special tokens come first, as in Mistral's own; the file of all words is one that a processor
    and a tokenizer of any class read.
    """
    words = [*_MISTRAL_TOKENS, *sorted(ByteLevel.alphabet())]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(list(_MISTRAL_TOKENS))
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(_MISTRAL_CHAT_TEMPLATE)
    return len(words)


def write_qwen_tokenizer(folder: Path) -> int:
    """Add what a folder with a tokenizer_config.json lacks; returns the vocabulary's size."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], eos_token=settings["eos_token"])
    tokenizer.add_special_tokens({"additional_special_tokens": list(_QWEN_SPECIAL_TOKENS)})
    tokenizer.add_tokens(list(_QWEN_TOKENS))
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings["chat_template"] = _QWEN_CHAT_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return len(tokenizer)
