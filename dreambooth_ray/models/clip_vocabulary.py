"""The vocabulary of CLIP's tokenizer, which the text encoders of Stable Diffusion have.

It ships as its merges alone (openai/CLIP, MIT licence). Nothing heavy is imported.
"""

import gzip
import json
from importlib.resources import files


def make_clip_vocabulary(folder: str = "tokenizer") -> dict[str, str]:
    """Its files by name, in a tokenizer's folder.

    Words are the bytes, alone and at a word's end, and what the merges make.
    """
    packed = (files(__package__) / "layouts" / "clip_merges.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode("utf-8")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in printable]
    letters += [chr(256 + index) for index in range(256 - len(printable))]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [line.replace(" ", "") for line in merges.splitlines()[1:] if line.strip()]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    text = json.dumps(vocabulary, ensure_ascii=False)
    return {f"{folder}/merges.txt": merges, f"{folder}/vocab.json": text}
