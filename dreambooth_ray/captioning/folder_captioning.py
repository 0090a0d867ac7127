"""Captions of a folder of photographs: asked for, and written beside them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dreambooth_ray.captioning.chat_answers import NoAnswerError
from dreambooth_ray.captioning.vision_client import VisionClient
from dreambooth_ray.data.caption_answers import (
    CaptionAnswer,
    hash_caption,
    read_answers,
    write_answers,
)
from dreambooth_ray.data.caption_files import CaptionFolder
from dreambooth_ray.data.caption_words import has_word, put_before
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
class CaptionOrder:
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
        prompt_with_noun = prompt.replace("{class_noun}", self.class_noun)
        return prompt_with_noun.replace("{identifier}", self.identifier)


@dataclass
class CaptioningResult:
    """Captions written and reasons for those that were not, by photograph; and what was there."""

    written: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def caption_folder(
    folder: Path,
    client: VisionClient,
    order: CaptionOrder,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> CaptioningResult:
    """Ask for the captions that a folder lacks; each is written as soon as it is there.

    Called again, it asks for those alone that failed.
    raises: DataError for what can't be read; ConfigError for what would fail with every photograph
    """
    paths, captions = find_photographs(folder), CaptionFolder(folder)
    result, targets = CaptioningResult(), {}
    answers = read_answers(folder)
    for path in paths:
        target = _find_target(path, paths, captions, order.overwrite)
        if target is None:
            result.skipped.append(path.name)
        else:
            targets[path] = target
    lock = threading.Lock()

    def write_caption(path: Path) -> str:
        photograph_hash = file_hash(path)
        image = _shrink(read_photograph(path), order.side_px)
        caption = put_words(client.describe(image, order.filled_prompt), order)
        with lock:
            _write(targets[path], caption, order.overwrite)
            answers[path.name] = CaptionAnswer(
                photograph_hash, hash_caption(caption), client.api, client.model,
                order.filled_prompt, order.side_px,
            )  # fmt: skip
            write_answers(folder, answers)
        return caption

    for path, outcome in _work_in_threads(write_caption, list(targets), order.parallel):
        outcomes_by_name = result.failures if isinstance(outcome, Exception) else result.written
        outcomes_by_name[path.name] = str(outcome)
        on_progress(len(result.written) + len(result.failures), len(targets))
    return result


def put_words(caption: str, order: CaptionOrder) -> str:
    """A caption with identifier and class noun, whatever the model has written."""
    if order.class_noun and not has_word(caption, order.class_noun):
        caption = f"a {order.class_noun}, {caption}"
    if not order.identifier or has_word(caption, order.identifier):
        return caption
    if not order.class_noun:
        return f"{order.identifier}, {caption}"
    return put_before(caption, order.identifier, order.class_noun)


def _find_target(
    path: Path, paths: list[Path], captions: CaptionFolder, overwrite: bool
) -> Path | None:
    """Where a photograph's caption is to be written; None where it has one that stays."""
    files = captions.find_files(path)
    if not overwrite:
        if captions.find_caption(path) is not None:
            return None
    elif len(files) > 1:
        raise DataError(f"{path} has two captions, {files[0].name} and {files[1].name}; remove one")
    elif captions.is_in_table(path):
        raise DataError(
            f"{path} has its caption in {' or '.join(t.name for t in captions.tables)}, which "
            "--overwrite leaves as it is; take its line out"
        )
    if files:
        return files[0]
    has_namesake = any(other.stem == path.stem for other in paths if other != path)
    return path.with_name(f"{path.name if has_namesake else path.stem}.txt")


def _write(target: Path, caption: str, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise NoAnswerError(f"{target.name} was written by somebody else meanwhile, and stays")
    try:
        with replace_file(target) as partial:
            partial.write_text(caption + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{target} can't be written ({error}); make room, or mend the folder's "
                        "permissions") from error  # fmt: skip


def _shrink(image: Image.Image, side_px: int) -> Image.Image:
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return image


def _work_in_threads(
    work: Callable[[Path], str], paths: list[Path], num_threads: int
) -> Iterator[tuple[Path, str | NoAnswerError]]:
    """What becomes of each, as it comes; any other error ends all that have not begun."""
    is_over = threading.Event()

    def attempt(path: Path) -> str | NoAnswerError | None:
        if is_over.is_set():
            return None
        try:
            return work(path)
        except NoAnswerError as error:
            return error
        except BaseException:
            is_over.set()
            raise

    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="caption")
    try:
        futures = {executor.submit(attempt, path): path for path in paths}
        for future in as_completed(futures):
            outcome = future.result()
            if outcome is not None:
                yield futures[future], outcome
    finally:
        is_over.set()
        executor.shutdown(cancel_futures=True)
