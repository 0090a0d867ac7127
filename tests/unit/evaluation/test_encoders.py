import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageEnhance
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.evaluation import encoders, image_metrics
from dreambooth_ray.evaluation.encoders import parse_attributes
from dreambooth_ray.toyworld.world import random_subject, render_photographs

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
VISION = {**SMALL, "image_size": 32, "patch_size": 16}


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    subjects = [random_subject(seed, class_noun="robot") for seed in (3, 7)]
    return [p for s in subjects for p in render_photographs(s, 1, 4, size_px=64)]


def assert_unit(vectors: torch.Tensor) -> None:
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)), atol=1e-5)


def test_a_vision_transformer_gives_its_first_token(
    tmp_path: Path, images: list[Image.Image]
) -> None:
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**VISION)).eval()
    model.save_pretrained(tmp_path)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    vectors = encoders.load_image_encoder(str(tmp_path)).embed_images(images)
    with torch.no_grad():
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        features = model(pixels).last_hidden_state[:, 0]
    assert_unit(vectors)
    assert torch.allclose(vectors, torch.nn.functional.normalize(features, dim=1), atol=1e-5)
    with pytest.raises(ConfigError, match=r"--clip=.*reads no sentences"):
        encoders.load_image_text_encoder(str(tmp_path), key="--clip")


def test_a_clip_reads_images_and_sentences(
    tmp_path: Path, toy_model: Path, images: list[Image.Image]
) -> None:
    shutil.copytree(toy_model / "tokenizer", tmp_path, dirs_exist_ok=True)
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 2048, "max_position_embeddings": 12}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    clip = encoders.load_image_text_encoder(str(tmp_path))
    image_vectors, text_vectors = (
        clip.embed_images(images),
        clip.embed_texts(["a dog", "a very " * 30]),
    )
    assert image_vectors.shape == (8, 16)
    assert text_vectors.shape == (2, 16)
    assert_unit(image_vectors)
    assert_unit(text_vectors)


def test_the_toy_worlds_evaluator_tells_individuals_apart(images: list[Image.Image]) -> None:
    vectors = encoders.load_image_encoder("toyworld:identity").embed_images(images)
    assert_unit(vectors)
    one, other = vectors[:4], vectors[4:]
    assert image_metrics.subject_fidelity(one[:2], one[2:]) > 0.8
    assert image_metrics.subject_fidelity(one, other) < 0.5


def test_the_toy_worlds_evaluator_reads_sentences() -> None:
    encoder = encoders.load_image_text_encoder("toyworld:attributes")
    subject = random_subject(7, class_noun="robot")
    image = render_photographs(subject, 1, 2, size_px=64)[1]  # on a wooden table
    right, wrong = (f"a {subject.colour} robot on a wooden table", "a pink fish in the snow")
    agreement = image_metrics.prompt_agreement(
        encoder.embed_images([image, image]), encoder.embed_texts([right, wrong])
    )
    assert agreement[0] > 0.7
    assert agreement[1] < 0.1
    with pytest.raises(ConfigError, match="names nothing"):
        encoder.embed_texts(["justice"])


def test_what_a_sentence_names() -> None:
    assert parse_attributes("A red  sks robot wearing a party hat on a plain background") == {
        "colour": "red",
        "class": "robot",
        "background": "plain",
        "hat": "hat",
    }
    assert parse_attributes("a plain starfish") == {"pattern": "plain"}


def test_pixels_know_a_copy_and_nothing_else(images: list[Image.Image]) -> None:
    encoder = encoders.load_image_encoder("pixels")
    paler = [ImageEnhance.Contrast(p).enhance(0.8) for p in images]
    copies = image_metrics.nearest_photographs(
        encoder.embed_images(paler), encoder.embed_images(images)
    )
    assert [c.photograph for c in copies] == list(range(8))
    assert all(c.copied for c in copies)
    unlike = image_metrics.nearest_photographs(
        encoder.embed_images(images[:4]), encoder.embed_images(images[4:])
    )
    assert not any(o.copied for o in unlike)
    assert_unit(encoder.embed_images([Image.new("RGB", (8, 8), "grey")]))


def test_an_unknown_encoder_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"--dino='/nowhere/vit' can't be loaded"):
        encoders.load_image_encoder("/nowhere/vit", key="--dino")
