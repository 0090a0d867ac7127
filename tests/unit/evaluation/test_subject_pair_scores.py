"""Bleed is told from likeness on images whose truth is known: renderings, side by side."""

import pytest
import torch
from PIL import Image

from dreambooth_ray.evaluation.encoders import TOY_IDENTITY, load_image_encoder
from dreambooth_ray.evaluation.subject_pair_scores import (
    SubjectPairScores,
    crop_image_parts,
    list_image_cuts,
    score_pair_likeness_and_bleed,
)
from dreambooth_ray.toyworld.world import Subject, random_subject, render_photographs

ROBOT, TEAPOT = random_subject(3, class_noun="robot"), random_subject(4, class_noun="teapot")


def beside(left: Subject, right: Subject, seed: int, *, level: bool = False) -> Image.Image:
    """One image of two subjects, which is cut in the middle; level: one above the other."""
    size = (256, 512) if level else (512, 256)
    image = Image.new("RGB", size)
    for k, subject in enumerate((left, right)):
        (part,) = render_photographs(subject, seed + k, 1)
        image.paste(part, (0, 256 * k) if level else (256 * k, 0))
    return image


def score(images: list[Image.Image], alone: tuple[Subject, Subject]) -> SubjectPairScores:
    encoder = load_image_encoder(TOY_IDENTITY)
    own = [encoder.embed_images(render_photographs(s, 7, 5)) for s in (ROBOT, TEAPOT)]
    single = [encoder.embed_images(render_photographs(s, 50, 4)) for s in alone]
    parts = [encoder.embed_images(crop_image_parts(image)) for image in images]
    alone_parts = [
        encoder.embed_images(crop_image_parts(image))
        for s in alone
        for image in render_photographs(s, 50, 4)
    ]
    return score_pair_likeness_and_bleed(
        (own[0], own[1]), (single[0], single[1]), parts, alone_parts
    )


def test_two_subjects_that_are_themselves_do_not_bleed() -> None:
    images = [beside(ROBOT, TEAPOT, 20), beside(TEAPOT, ROBOT, 30, level=True)]
    scores = score(images, (ROBOT, TEAPOT))
    assert scores.both == 1
    assert min(scores.likeness) > 0.6
    assert min(scores.alone_likeness) > 0.6
    assert max(map(abs, (*scores.bleed, *scores.alone_bleed))) < 0.2


def test_a_subject_that_took_the_others_place_bleeds() -> None:
    scores = score([beside(ROBOT, ROBOT, 20)], (ROBOT, ROBOT))
    assert scores.both == 0
    assert scores.bleed[1] > 0.5
    assert scores.likeness[1] < 0.3 < scores.likeness[0]
    assert scores.alone_bleed[1] > 0.5 > abs(scores.alone_bleed[0])


def test_the_numbers_are_those_of_their_definition() -> None:
    """A part of each, exactly, and half of the other in the second."""
    first, second = torch.eye(3)[:1], torch.eye(3)[1:2]
    mixed = torch.tensor([[0.6, 0.8, 0.0]])
    filler = torch.eye(3)[2:].expand(len(list_image_cuts(8, 8)) * 2 - 2, 3)
    parts, one_alone = torch.cat([mixed, first, filler]), torch.cat([first, filler[:1], filler])
    scores = score_pair_likeness_and_bleed(
        (first, second), (first, mixed), [parts, one_alone], [one_alone]
    )
    assert scores == SubjectPairScores(
        likeness=(1.0, 0.4), bleed=(0.0, 0.3), alone_likeness=(1.0, 0.8), alone_bleed=(0.0, 0.6),
        both=0.5,
    )  # fmt: skip


@pytest.mark.parametrize("size", [(64, 64), (101, 37), (3, 3)])
def test_every_cut_covers_the_image_once(size: tuple[int, int]) -> None:
    for first, second in list_image_cuts(*size):
        areas = [(right - left) * (low - top) for left, top, right, low in (first, second)]
        assert min(areas) > 0
        assert sum(areas) == size[0] * size[1]
