"""Captions as the flow model reads them: Qwen2's tokenizer over the toy world's words.

One token a word, so that a caption with its chat marks fits WINDOW tokens, the multiple to which
ZImageTransformer2DModel pads captions anyway. Words that were never met, such as rare identifiers,
fall into bytes: nothing is unknown. Nothing is trained, so the same tokenizer comes out each time.
"""

from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer

from dreambooth_ray.toyworld.world_captions import vocabulary_words

WINDOW = 32
_SPACE = "Ġ"  # what byte-level tokenizers write for a space
_ROLES = ("user", "assistant")

# Qwen's own chat format, with a space before the message and all of it in lower case: so a word is
# the same token wherever it stands and however it is written.
_CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n ' + message['content'] | lower | trim }}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)


def new_flow_tokenizer() -> Qwen2Tokenizer:
    """The flow model's tokenizer; its ids are part of the weights: append words, never reorder."""
    vocabulary = dict.fromkeys([*(_SPACE + word for word in vocabulary_words()), *_ROLES])
    # A word's letters join one by one from its front, so no merge can split another word.
    word_prefixes = [[word[:k] for k in range(1, len(word) + 1)] for word in vocabulary]
    merges = dict.fromkeys(
        (short, longer[len(short) :])
        for parts in word_prefixes
        for short, longer in pairwise(parts)
    )
    byte_symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary_tokens = dict.fromkeys([*byte_symbols, *("".join(pair) for pair in merges)])
    return Qwen2Tokenizer(
        vocab={token: k for k, token in enumerate(vocabulary_tokens)},
        merges=list(merges),
        model_max_length=512,
        padding_side="right",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=_CHAT_TEMPLATE,
    )


def apply_chat_format(tokenizer: Qwen2Tokenizer, prompt: str) -> str:
    """The text that ZImagePipeline tokenizes for a prompt."""
    chat_text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=True,
    )
    return chat_text
