"""The vocabulary of CLIP's tokenizer, which the text encoders of Stable Diffusion have.

It ships as its merges alone (openai/CLIP, MIT licence). Nothing heavy is imported.
"""

import gzip
import json
from importlib.resources import files


def make_clip_tokenizer_files(folder: str = "tokenizer") -> dict[str, str]:
    """Its files by name, in a tokenizer's folder.

    Words are the bytes, alone and at a word's end, and what the merges make.
    """
    compressed_merges = (files(__package__) / "layouts" / "clip_merges.txt.gz").read_bytes()
    merges = gzip.decompress(compressed_merges).decode("utf-8")
    printable_codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_letters = [chr(code) for code in printable_codes]
    byte_letters += [chr(256 + index) for index in range(256 - len(printable_codes))]
    bpe_tokens = [*byte_letters, *(f"{letter}</w>" for letter in byte_letters)]
    bpe_tokens += [line.replace(" ", "") for line in merges.splitlines()[1:] if line.strip()]
    bpe_tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(bpe_tokens)}
    vocabulary_json = json.dumps(vocabulary, ensure_ascii=False)
    return {f"{folder}/merges.txt": merges, f"{folder}/vocab.json": vocabulary_json}
