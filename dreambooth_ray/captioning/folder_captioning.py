"""Captions of a folder of photographs: asked for, and written beside them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dreambooth_ray.captioning.chat_answers import NoAnswerError
from dreambooth_ray.captioning.vision_client import VisionClient
from dreambooth_ray.data.caption_files import CaptionFolder
from dreambooth_ray.data.caption_words import caption_has_word, insert_word_before_noun
from dreambooth_ray.data.generated_caption_records import (
    GeneratedCaptionRecord,
    hash_caption,
    read_generated_caption_records,
    write_generated_caption_records,
)
from dreambooth_ray.data.photographs import find_photographs, read_photograph
from dreambooth_ray.errors import DataError
from dreambooth_ray.storage.local_files import replace_file
from dreambooth_ray.storage.manifest import file_hash

# What never changes is left out, so that it is learnt by the identifier.
_TASK = "Write a caption of this photograph, one sentence, to train a text-to-image model on. "
_ENDING = " Answer with the caption alone."
SUBJECT_PROMPT = (
    _TASK + 'Call the {class_noun} just "a {class_noun}": leave out its colour, material, markings '
    "and whatever else is always so of it. Say what may differ in another photograph of it: what "
    "it does, the place, what is around it, the light, the view." + _ENDING
)
PROMPT = _TASK + "Say what is shown, the place, the light and the view." + _ENDING


@dataclass(frozen=True)
class CaptioningOptions:
    """What is asked for.

    class_noun, identifier: words that each caption shall hold, "" for none
    side_px: of the longer side of what is sent, at most; parallel: requests at once
    """

    prompt: str = ""
    class_noun: str = ""
    identifier: str = ""
    side_px: int = 1024
    parallel: int = 1
    overwrite: bool = False

    @property
    def filled_prompt(self) -> str:
        """The prompt, with {class_noun} and {identifier} filled in."""
        prompt = self.prompt or (SUBJECT_PROMPT if self.class_noun else PROMPT)
        noun_filled_prompt = prompt.replace("{class_noun}", self.class_noun)
        return noun_filled_prompt.replace("{identifier}", self.identifier)


@dataclass
class CaptioningResult:
    """Captions written and reasons for those that were not, by photograph; and what was there."""

    written: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def caption_folder(
    folder: Path,
    client: VisionClient,
    order: CaptioningOptions,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> CaptioningResult:
    """Ask for the captions that a folder lacks; each is written as soon as it is there.

    Called again, it asks for those alone that failed.
    raises: DataError for what can't be read; ConfigError for what would fail with every photograph
    """
    photograph_paths, folder_captions = find_photographs(folder), CaptionFolder(folder)
    captioning_result, caption_paths = CaptioningResult(), {}
    saved_answers = read_generated_caption_records(folder)
    for path in photograph_paths:
        caption_path = _choose_caption_path(
            path, photograph_paths, folder_captions, order.overwrite
        )
        if caption_path is None:
            captioning_result.skipped.append(path.name)
        else:
            caption_paths[path] = caption_path
    lock = threading.Lock()

    def caption_photograph(path: Path) -> str:
        photograph_sha256 = file_hash(path)
        image = _shrink_image(read_photograph(path), order.side_px)
        caption = insert_required_words(client.describe(image, order.filled_prompt), order)
        with lock:
            _write_caption_file(caption_paths[path], caption, order.overwrite)
            saved_answers[path.name] = GeneratedCaptionRecord(
                photograph_sha256, hash_caption(caption), client.api, client.model,
                order.filled_prompt, order.side_px,
            )  # fmt: skip
            write_generated_caption_records(folder, saved_answers)
        return caption

    for path, caption_or_error in _work_in_threads(
        caption_photograph, list(caption_paths), order.parallel
    ):
        texts_by_photograph = (
            captioning_result.failures
            if isinstance(caption_or_error, Exception)
            else captioning_result.written
        )
        texts_by_photograph[path.name] = str(caption_or_error)
        on_progress(
            len(captioning_result.written) + len(captioning_result.failures), len(caption_paths)
        )
    return captioning_result


def insert_required_words(caption: str, order: CaptioningOptions) -> str:
    """A caption with identifier and class noun, whatever the model has written."""
    if order.class_noun and not caption_has_word(caption, order.class_noun):
        caption = f"a {order.class_noun}, {caption}"
    if not order.identifier or caption_has_word(caption, order.identifier):
        return caption
    if not order.class_noun:
        return f"{order.identifier}, {caption}"
    return insert_word_before_noun(caption, order.identifier, order.class_noun)


def _choose_caption_path(
    path: Path, paths: list[Path], captions: CaptionFolder, overwrite: bool
) -> Path | None:
    """Where a photograph's caption is to be written; None where it has one that stays."""
    caption_files = captions.find_photograph_caption_files(path)
    if not overwrite:
        if captions.find_caption(path) is not None:
            return None
    elif len(caption_files) > 1:
        raise DataError(
            f"{path} has two captions, {caption_files[0].name} and {caption_files[1].name}; remove "
            "one"
        )
    elif captions.is_in_table(path):
        raise DataError(
            f"{path} has its caption in {' or '.join(t.name for t in captions.tables)}, which "
            "--overwrite leaves as it is; take its line out"
        )
    if caption_files:
        return caption_files[0]
    has_same_stem_photograph = any(other.stem == path.stem for other in paths if other != path)
    return path.with_name(f"{path.name if has_same_stem_photograph else path.stem}.txt")


def _write_caption_file(target: Path, caption: str, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise NoAnswerError(f"{target.name} was written by somebody else meanwhile, and stays")
    try:
        with replace_file(target) as partial_path:
            partial_path.write_text(caption + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{target} can't be written ({error}); make room, or mend the folder's "
                        "permissions") from error  # fmt: skip


def _shrink_image(image: Image.Image, side_px: int) -> Image.Image:
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return image


def _work_in_threads(
    work: Callable[[Path], str], paths: list[Path], num_threads: int
) -> Iterator[tuple[Path, str | NoAnswerError]]:
    """What becomes of each, as it comes; any other error ends all that have not begun."""
    stop_event = threading.Event()

    def run_unless_stopped(path: Path) -> str | NoAnswerError | None:
        if stop_event.is_set():
            return None
        try:
            return work(path)
        except NoAnswerError as error:
            return error
        except BaseException:
            stop_event.set()
            raise

    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="caption")
    try:
        futures = {executor.submit(run_unless_stopped, path): path for path in paths}
        for future in as_completed(futures):
            caption_or_error = future.result()
            if caption_or_error is not None:
                yield futures[future], caption_or_error
    finally:
        stop_event.set()
        executor.shutdown(cancel_futures=True)
