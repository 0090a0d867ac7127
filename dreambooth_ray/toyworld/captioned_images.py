"""Images of the toy world with tokenized captions, rendered by worker processes."""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
from tokenizers import Tokenizer

from dreambooth_ray.errors import DataError
from dreambooth_ray.toyworld.world import render_image
from dreambooth_ray.toyworld.world_captions import random_caption
from dreambooth_ray.toyworld.world_images import subject_and_scene

CAPTIONS_EACH = 4
BLOCK = 512


@dataclass(frozen=True)
class CaptionTokenizerSpec:
    """How a worker turns captions into ids; picklable.

    tokenizer_json: a fast tokenizer, serialized
    text: what is tokenized, with {} where the caption stands
    window: ids of each caption; shorter ones end in pad_id
    """

    tokenizer_json: str
    text: str
    window: int
    pad_id: int


@cache
def _load_tokenizer(serialized: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(serialized)
    # A transformers tokenizer leaves the padding of its last call in there.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenize_captions(captions: list[str], form: CaptionTokenizerSpec) -> np.ndarray:
    """Captions as (len(captions), window) int16.

    raises: DataError for a caption that is longer than the window
    """
    tokenizer = _load_tokenizer(form.tokenizer_json)
    token_ids = np.full((len(captions), form.window), form.pad_id, np.int16)
    for token_row, caption in zip(token_ids, captions, strict=True):
        caption_ids = tokenizer.encode(form.text.replace("{}", caption)).ids
        if len(caption_ids) > form.window:
            raise DataError(
                f"the caption {caption!r} has {len(caption_ids)} tokens, and {form.window} fit; "
                "add its words to the tokenizer"
            )
        token_row[: len(caption_ids)] = caption_ids
    return token_ids


def render_captioned_block(
    seed: int, start: int, stop: int, form: CaptionTokenizerSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Images start..stop-1: (n, 64, 64, 3) uint8, and (n, CAPTIONS_EACH, window) int16."""
    images, token_ids = [], []
    for image_index in range(start, stop):
        subject, scene = subject_and_scene(seed, image_index)
        images.append(np.asarray(render_image(subject, scene)))
        image_captions = [
            random_caption(subject, scene, seed, CAPTIONS_EACH * image_index + c)
            for c in range(CAPTIONS_EACH)
        ]
        token_ids.append(tokenize_captions(image_captions, form))
    return np.stack(images), np.stack(token_ids)


def render_captioned_images(
    seed: int, count: int, form: CaptionTokenizerSpec, workers: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Blocks of the first `count` images in their order: (start, images, token ids)."""
    # Not forked from this process, which may hold a GPU, and with the imports done once.
    process_context = multiprocessing.get_context("forkserver")
    process_context.set_forkserver_preload([__name__])
    image_index_ranges = ((s, min(s + BLOCK, count)) for s in range(0, count, BLOCK))
    with ProcessPoolExecutor(workers, mp_context=process_context) as process_pool:
        starts_and_futures = (
            (s, process_pool.submit(render_captioned_block, seed, s, stop, form))
            for s, stop in image_index_ranges
        )
        future_queue = deque(islice(starts_and_futures, 3 * workers))  # so few wait in memory
        while future_queue:
            start, block_future = future_queue.popleft()
            yield (start, *block_future.result())
            future_queue.extend(islice(starts_and_futures, 1))
