"""Masks proposed by a SegFormer whose weights are set so that red before blue is a dog."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    ViTConfig,
)
from typer.testing import CliRunner

from dreambooth_ray.cli.main import app
from dreambooth_ray.errors import ConfigError, StorageError
from dreambooth_ray.evaluation.segmentation import MaskProposer, Segmenter
from tests.hub_server import HubServer, read_folder

BOX = (96, 64, 192, 160)
LABELS = {0: "wall", 1: "dog, domestic dog", 2: "car"}


def save_segmenter(folder: Path, labels: dict[int, str]) -> Path:
    """Class 1 where an image is more red than blue; of one class, that itself."""
    config = SegformerConfig(
        num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[4], patch_sizes=[7],
        strides=[4], num_attention_heads=[1], mlp_ratios=[1], decoder_hidden_size=4,
        num_labels=len(labels), id2label=labels, label2id={n: i for i, n in labels.items()},
    )  # fmt: skip
    network: Any = SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            # Attention and its layers add nothing; norms are plain.
            weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        parameters = dict(network.named_parameters())
        # Red less blue, and the reverse, of which a norm keeps the sign.
        colours = parameters["segformer.stages.0.patch_embeddings.proj.weight"]
        colours[0, 0, 3, 3] = colours[1, 2, 3, 3] = 1
        colours[0, 2, 3, 3] = colours[1, 0, 3, 3] = -1
        for name in ("decode_head.linear_projections.0.proj.weight",
                     "decode_head.linear_fuse.weight"):  # fmt: skip
            nn.init.dirac_(parameters[name].data.view(4, 4, 1))
        classifier, bias = (parameters[f"decode_head.classifier.{n}"] for n in ("weight", "bias"))
        if len(labels) == 1:
            classifier[0, 0], bias[0] = 1, -0.7
        else:
            classifier[1, 0] = classifier[0, 1] = 1
    network.save_pretrained(folder)
    SegformerImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dogs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_segmenter(tmp_path_factory.mktemp("segmenter") / "dogs", LABELS)


def make_photograph(size: tuple[int, int] = (256, 224)) -> Image.Image:
    image = Image.new("RGB", size, (30, 60, 220))
    image.paste((220, 60, 30), BOX)
    return image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """With a dog, without one, and with a dog and its mask."""
    folder = tmp_path / "photos"
    folder.mkdir()
    make_photograph().save(folder / "a.png")
    Image.new("RGB", (256, 224), (30, 60, 220)).save(folder / "b.png")
    make_photograph().save(folder / "c.png")
    mask = Image.new("L", (256, 224), 0)
    mask.paste(255, (100, 70, 180, 150))
    mask.save(folder / "c.mask.png")
    return folder


def check_proposal(mask: Image.Image) -> None:
    inside = np.asarray(mask) > 127
    expected = np.zeros_like(inside)
    expected[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    union = (inside | expected).sum()
    assert (inside & expected).sum() / union > 0.85
    assert set(np.unique(np.asarray(mask))) == {0, 255}


@pytest.mark.parametrize("noun", ["dog", "Domestic  dog"])
def test_the_pixels_of_the_class_are_white(dogs: Path, noun: str) -> None:
    mask = Segmenter(str(dogs), noun).segment(make_photograph())
    assert mask.size == (256, 224)
    check_proposal(mask)
    walls = np.asarray(Segmenter(str(dogs), "wall").segment(make_photograph()))
    assert np.array_equal(walls, 255 - np.asarray(mask))
    assert Segmenter(str(dogs), "car").segment(make_photograph()).getextrema() == (0, 0)


@pytest.mark.parametrize(
    "labels", [{0: "foreground"}, {0: "background", 1: "thing"}, {0: "LABEL_0", 1: "LABEL_1"}]
)
def test_of_a_foreground_no_noun_is_asked(tmp_path: Path, labels: dict[int, str]) -> None:
    folder = save_segmenter(tmp_path / "network", labels)
    for noun in ("", "robot"):
        check_proposal(Segmenter(str(folder), noun).segment(make_photograph()))


def test_what_can_not_propose_is_refused_by_name(dogs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--class-noun='dgo' is none of them; .* such as dog"):
        Segmenter(str(dogs), "dgo")
    with pytest.raises(ConfigError, match=r"3 classes apart, and it needs --class-noun"):
        Segmenter(str(dogs), "")
    with pytest.raises(ConfigError, match=r"--segment='.*none' is no directory here"):
        Segmenter(str(tmp_path / "none"), "dog")
    with pytest.raises(ConfigError, match=r"--segment='.*' has no config\.json"):
        Segmenter(str(tmp_path), "dog")
    other = tmp_path / "other"
    ViTConfig(hidden_size=8).save_pretrained(other)
    with pytest.raises(ConfigError, match=r"is no network for semantic segmentation .*\(vit\)"):
        Segmenter(str(other), "dog")


def copy_network(dogs: Path, to: Path) -> Path:
    to.mkdir()
    for path in dogs.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_weights_are_whole_and_safetensors(dogs: Path, tmp_path: Path) -> None:
    pickled = copy_network(dogs, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin alone, a pickle"):
        Segmenter(str(pickled), "dog")
    deeper = copy_network(dogs, tmp_path / "deeper")
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(config | {"depths": [2]}))
    with pytest.raises(ConfigError, match="missing keys"):
        Segmenter(str(deeper), "dog")


def test_a_network_comes_from_storage(dogs: Path, tmp_path: Path) -> None:
    mask = Segmenter(f"file://{dogs}", "dog").segment(make_photograph())
    check_proposal(mask)


@pytest.mark.fault
def test_a_network_comes_from_the_hub(dogs: Path, photos: Path, tmp_path: Path) -> None:
    server = HubServer()
    server.add("someone/dogs", read_folder(dogs) | {"pytorch_model.bin": b"a pickle"})
    environment = os.environ | {
        "HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "hf"),
        "DREAMBOOTH_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    command = [sys.executable, "-m", "dreambooth_ray", "doctor", str(photos), "--write-masks"]
    try:
        done = subprocess.run(
            [*command, "--segment", "someone/dogs", "--class-noun", "dog"],
            check=False, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        check_proposal(Image.open(photos / "a.mask.png"))
        assert server.count("model.safetensors") and not server.count("pytorch_model.bin")
    finally:
        server.close()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_proposals_are_shown_and_written_only_when_asked(
    dogs: Path, photos: Path, tmp_path: Path
) -> None:
    before = (photos / "c.mask.png").read_bytes()
    options = [str(photos), "--segment", str(dogs), "--class-noun", "dog", "--resolution", "64"]
    page = tmp_path / "page.html"
    result = run(*options, "--out", str(page))
    assert result.exit_code == 0
    assert "proposed mask of a.png: 1" in result.stdout
    assert "proposed mask of b.png: nothing of the subject is seen there" in result.stdout
    assert "proposed mask of c.png" not in result.stdout
    assert sorted(p.name for p in photos.glob("*.mask.png")) == ["c.mask.png"]
    assert "a.png, 256x224; dark outside proposed mask" in page.read_text()
    result = run(*options, "--write-masks", "--json")
    record = json.loads(result.stdout)
    assert record["proposed_masks"]["a.png"].endswith("of the frame, written to a.mask.png")
    assert record["photographs"][0]["subject"]["from"] == "proposed mask"
    check_proposal(Image.open(photos / "a.mask.png"))
    assert (photos / "c.mask.png").read_bytes() == before
    written = (photos / "a.mask.png").read_bytes()
    record = json.loads(run(*options, "--write-masks", "--json").stdout)
    assert list(record["proposed_masks"]) == ["b.png"]
    assert (photos / "a.mask.png").read_bytes() == written
    assert sorted(p.name for p in photos.iterdir()) == [
        "a.mask.png", "a.png", "b.png", "c.mask.png", "c.png",
    ]  # fmt: skip


def test_a_mask_that_comes_meanwhile_stays(dogs: Path, photos: Path) -> None:
    proposals = MaskProposer(Segmenter(str(dogs), "dog"), writes=True)
    (photos / "a.mask.png").write_bytes(b"somebody's")
    proposals.propose(photos / "a.png", make_photograph())
    assert proposals.outcomes["a.png"].endswith("a.mask.png is there and stays")
    assert (photos / "a.mask.png").read_bytes() == b"somebody's"
    with pytest.raises(StorageError, match=r"--write-masks: .*d\.mask\.png can't be written"):
        proposals.propose(photos / "a.png" / "d.png", make_photograph())


def test_an_inverted_proposal_is_none(dogs: Path, photos: Path) -> None:
    proposals = MaskProposer(Segmenter(str(dogs), "wall"), writes=True)
    assert proposals.propose(photos / "a.png", make_photograph()) is None
    assert proposals.outcomes["a.png"].startswith("not proposed: it looks inverted")
    assert not (photos / "a.mask.png").exists()


def test_to_write_needs_a_network(photos: Path) -> None:
    result = run(str(photos), "--write-masks")
    assert isinstance(result.exception, ConfigError)
    assert "give --segment" in str(result.exception)
