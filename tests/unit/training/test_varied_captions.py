"""Captions that vary: every worker, a resume and a slot see the same of them."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.data.run_inputs import RunInputs, record_photographs
from dreambooth_ray.data.subject import read_photographs_for_subject_config
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.dataset import TrainingDataset
from tests.unit.training.fitted import SMALL
from tests.unit.training.slots.slotted import Slotted

VARIED = (
    "captions.shuffle=true", "captions.tag_dropout=0.3", "prior.count=0", "captions.variants=8",
)  # fmt: skip


@pytest.fixture
def tagged(photos: Path, tmp_path: Path) -> Path:
    """Photographs with tags as captions."""
    folder = Path(shutil.copytree(photos, tmp_path / "tagged"))
    for index, path in enumerate(sorted(folder.glob("*.png"))):
        path.with_suffix(".txt").write_text(f"sks robot, a{index}, b, c, d")
    return folder


def make_dataset(
    model: Path, folder: Path, *overrides: str, rank: int = 0, world: int = 1
) -> tuple[TrainingDataset, Components]:
    text = f"subject: {{photos: {folder}, class_noun: robot}}"
    config = parse_config(text, "x", [*SMALL, *VARIED, "train.batch_size=4", *overrides])
    parts = load_components(model)
    apply_train_method(config, parts)
    photographs = read_photographs_for_subject_config(config, config.subject)
    return TrainingDataset(config, parts, [photographs], None, (rank, world)), parts


def read_text(batch: Batch) -> Tensor:
    """(B, ...): token ids, or what they are encoded to."""
    if batch.tokens is not None:
        return batch.tokens["input_ids"]
    assert batch.conditioning is not None
    return batch.conditioning["hidden"]


@pytest.mark.parametrize("text_encoder", ["true", "false"])
def test_workers_share_the_captions_of_a_step(
    tiny_model: Path, tagged: Path, text_encoder: str
) -> None:
    setting = f"train.text_encoder={text_encoder}"
    whole, _ = make_dataset(tiny_model, tagged, setting)
    shares = [make_dataset(tiny_model, tagged, setting, rank=r, world=2)[0] for r in (0, 1)]
    texts = set()
    for step in range(6):
        rows = read_text(whole.make_batch(step))
        assert torch.equal(rows, torch.cat([read_text(s.make_batch(step)) for s in shares]))
        texts.update(tuple(row.flatten().tolist()) for row in rows)
    assert len(texts) > 10


def test_a_resume_sees_what_would_have_come(tiny_model: Path, tagged: Path) -> None:
    dataset, _ = make_dataset(tiny_model, tagged)
    resumed, _ = make_dataset(tiny_model, tagged, "train.steps=9")
    resumed.start = 5
    for batch in resumed:
        assert torch.equal(read_text(batch), read_text(dataset.make_batch(batch.step)))
    assert batch.step == 8
    other, _ = make_dataset(tiny_model, tagged, "seed=1")
    assert not torch.equal(read_text(other.make_batch(8)), read_text(batch))


def test_what_is_kept_has_the_same_tags_without_the_identifier(
    tiny_model: Path, tagged: Path
) -> None:
    dataset, parts = make_dataset(tiny_model, tagged, "prior.kind=output")
    for step in range(4):
        batch = dataset.make_batch(step)
        assert batch.preserved is not None and batch.preserved.tokens is not None
        rows = zip(read_text(batch), batch.preserved.tokens["input_ids"], strict=True)
        for caption, preserved in (parts.tokenizer.batch_decode(p, True) for p in rows):
            assert preserved.split() == caption.replace("sks", "").split(), (caption, preserved)


def test_a_learned_word_is_in_every_variant(tiny_model: Path, tagged: Path) -> None:
    for path in tagged.glob("*.txt"):
        path.write_text("a, b, {identifier} robot, c")
    settings = "identifier.kind=learned", "captions.keep_tokens=0", "captions.tag_dropout=1"
    dataset, parts = make_dataset(tiny_model, tagged, *settings)
    for row in read_text(dataset.make_batch(3)):
        assert parts.tokenizer.decode(row, True).replace(" ", "") == "<sks>robot"


def test_a_subject_in_a_slot_learns_what_it_does_alone(tiny_model: Path, tagged: Path) -> None:
    shared = (*VARIED, "train.steps=3")
    alone = Slotted(tiny_model, tagged, None, 2, *shared)
    alone.join("varied")
    company = Slotted(tiny_model, tagged, None, 2, *shared)
    company.join("other", "seed=1", "captions.shuffle=false", "captions.tag_dropout=0")
    company.join("varied")
    assert company.run()["varied"] == alone.run()["varied"]


def test_a_run_remembers_captions_as_they_were_written(photos: Path, tagged: Path) -> None:
    text = f"subject: {{photos: {tagged}, class_noun: robot}}"

    def record(*overrides: str) -> RunInputs:
        config = parse_config(text, "x", [*SMALL, *overrides])
        photographs = read_photographs_for_subject_config(config, config.subject)
        records = record_photographs(photographs, config.instance_prompts(config.subject))
        return RunInputs((records,), "", Path())

    before = record()
    assert before.photographs[0][1].caption == "sks robot, a1, b, c, d"
    assert record(*VARIED) == before
    min(tagged.glob("*.txt")).write_text("sks robot")
    (difference,) = record(*VARIED).describe_differences(before.to_json())
    assert "1 captions are others" in difference
