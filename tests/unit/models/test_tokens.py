from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import tokens
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.models.trainable_params import apply_train_method


def config_of(*overrides: str) -> Config:
    base = "subject: {photos: p, class_noun: robot}\nidentifier: {kind: learned}"
    return parse_config(base, "x", list(overrides))


def learned_parts(model: Path, *overrides: str) -> Components:
    parts = load_components(model)
    apply_train_method(config_of(*overrides), parts)
    return parts


def hidden(parts: Components, text: str) -> torch.Tensor:
    ids = parts.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        embedded: torch.Tensor = parts.text_encoder.eval()(ids).last_hidden_state
    return embedded


def test_a_learned_word_is_one_token_that_begins_as_the_class_noun(toy_model: Path) -> None:
    parts = learned_parts(toy_model)
    assert parts.tokenizer.tokenize("a <sks> robot") == ["a</w>", "<sks>", "robot</w>"]
    assert torch.equal(hidden(parts, "a <sks>"), hidden(parts, "a robot"))


def test_alone_it_is_the_only_weight_that_moves(toy_model: Path) -> None:
    parts = learned_parts(toy_model, "train.unet=false", "train.text_encoder=false")
    before = {n: p.clone() for n, p in parts.text_encoder.named_parameters()}
    moving = [n for n, p in before.items() if p.requires_grad]
    assert len(moving) == 1
    assert before[moving[0]].shape == (1, 128)
    optimizer = torch.optim.AdamW([p for p in parts.text_encoder.parameters() if p.requires_grad])
    ids = parts.tokenizer("a <sks> robot", return_tensors="pt").input_ids
    parts.text_encoder(ids).last_hidden_state.square().mean().backward()
    optimizer.step()
    changed = [n for n, p in parts.text_encoder.named_parameters() if not torch.equal(p, before[n])]
    assert changed == moving
    assert not any(p.requires_grad for p in parts.unet.parameters())


def test_folded_and_read_back_it_means_the_same(toy_model: Path, tmp_path: Path) -> None:
    parts = learned_parts(toy_model)
    learned = parts.text_encoder.get_input_embeddings()
    learned.rows.data += torch.randn_like(learned.rows)
    reference = hidden(parts, "a <sks> robot")
    tokens.save_words(tokens.learned_embeddings(parts), tmp_path)
    tokens.fold_embeddings(parts)
    assert torch.equal(hidden(parts, "a <sks> robot"), reference)
    fresh = load_components(toy_model)
    tokens.add_words(fresh, tokens.read_learned_words(tmp_path))
    assert torch.equal(hidden(fresh, "a <sks> robot"), reference)
    assert fresh.text_encoder.config.vocab_size == len(fresh.tokenizer)


def test_diffusers_reads_one_word_as_a_textual_inversion(toy_model: Path, tmp_path: Path) -> None:
    parts = learned_parts(toy_model)
    tokens.save_words(tokens.learned_embeddings(parts), tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(toy_model)
    pipeline.load_textual_inversion(str(tokens.words_path(tmp_path, "text_encoder")))
    row = pipeline.text_encoder.get_input_embeddings().weight[-1]
    assert torch.equal(row, parts.text_encoder.get_input_embeddings().rows[0])


def test_a_word_of_the_vocabulary_is_refused(toy_model: Path) -> None:
    config = config_of("subject.identifier=<|endoftext|>")
    with pytest.raises(ConfigError, match="a word of the model already"):
        check_training_settings(config, toy_model)
    check_training_settings(config_of(), toy_model)


def test_a_rare_word_stays_as_it_is() -> None:
    assert config_of("identifier.kind=rare_word").instance_prompt == "a sks robot"
    assert config_of().instance_prompt == "a <sks> robot"
    assert config_of("subject.identifier=<sks>").instance_prompt == "a <sks> robot"
