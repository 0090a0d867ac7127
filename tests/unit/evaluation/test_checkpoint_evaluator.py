import json
from pathlib import Path

import pytest
import torch
import yaml

from dreambooth_ray.config.load import dump_config, load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.evaluation.checkpoint_evaluator import (
    CheckpointEvaluator,
    check_choice_protocol,
)
from dreambooth_ray.evaluation.protocol import load_protocol
from dreambooth_ray.evaluation.protocol_scorer import load_checkpoint_protocol
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_defaults import fill_model_defaults
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.download import STATE

PROTOCOL = {
    "name": "one prompt",
    "prompts": {"object": ["a {identifier} {class_noun} at night"]},
    "images_per_prompt": 1,
    "class_images": 2,
    "num_inference_steps": 2,
    "encoders": {
        "dino": "toyworld:identity", "clip_i": "toyworld:identity", "clip_t": "toyworld:attributes",
    },
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, photos: Path) -> Config:
    (tmp_path / "protocol.yaml").write_text(yaml.safe_dump(PROTOCOL))
    return load_config(
        "toy-robot-lora.yaml",
        [
            f"subject.photos={photos}", f"storage.uri={tmp_path}", "choice.rule=best",
            f"choice.protocol={tmp_path / 'protocol.yaml'}",
        ],
    )  # fmt: skip


def commit(run: Store, config: Config, model: Path, local: Path) -> None:
    """A checkpoint as a trainer would save it, of weights that were never trained."""
    parts = load_components(model)
    apply_train_method(config, parts)
    state = {
        f"{name}.{key}": weight.detach()
        for name, network in parts.networks.items()
        for key, weight in network.named_parameters()
        if weight.requires_grad
    }
    local.mkdir()
    torch.save({"state_dict": state}, local / STATE)
    manifest.commit_artifact(run, paths.checkpoint(5), local, {"step": 5})


def test_a_checkpoint_is_evaluated_by_the_protocol_and_its_numbers_are_kept(
    tmp_path: Path, config: Config, toy_model: Path
) -> None:
    run = Store(str(tmp_path / "run"))
    commit(run, config, toy_model, tmp_path / "local")
    protocol = load_protocol(config.choice.protocol)
    evaluator = CheckpointEvaluator(
        dump_config(config), run.uri, (str(toy_model), ""), protocol, {}
    )
    scored = evaluator.evaluate(5)
    totals = json.loads(run.read(paths.evaluation(5)))["totals"]
    assert (scored.step, scored.fidelity, scored.drift) == (5, totals["dino"], totals["pres"])
    assert -1 <= scored.fidelity <= 1
    assert evaluator.evaluate(5) == scored


def test_a_model_is_evaluated_in_its_familys_way(tmp_path: Path, config: Config) -> None:
    """Of what a protocol leaves open: the solver here, which models of flow matching have not."""
    run, model = Store(str(tmp_path / "run")), model_directory("toyworld-flow")
    config = load_config(
        "toy-robot-flow.yaml",
        [
            f"subject.photos={config.subject.photos}", f"storage.uri={tmp_path}",
            "train.method=lora", "choice.rule=best", f"choice.protocol={config.choice.protocol}",
        ],
    )  # fmt: skip
    config = fill_model_defaults(config, find_family(model))
    check_choice_protocol(config, model)
    commit(run, config, model, tmp_path / "local")
    evaluator = CheckpointEvaluator(
        dump_config(config),
        run.uri,
        (str(model), ""),
        load_checkpoint_protocol(config),
        {},
    )
    assert -1 <= evaluator.evaluate(5).fidelity <= 1


def test_what_can_not_be_evaluated_is_refused_before_work(config: Config, toy_model: Path) -> None:
    check_choice_protocol(config, toy_model)
    choice = config.choice.model_copy(update={"drift": "drift"})
    with pytest.raises(ConfigError, match=r"choice\.drift=drift is not told"):
        check_choice_protocol(config.model_copy(update={"choice": choice}), toy_model)
    choice = config.choice.model_copy(update={"protocol": "paper"})
    with pytest.raises(ConfigError, match=r"choice\.protocol='paper' is neither"):
        check_choice_protocol(config.model_copy(update={"choice": choice}), toy_model)
