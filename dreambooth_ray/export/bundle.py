"""What a run ends with: a diffusers directory, a card and a manifest."""

import json
import tempfile
from pathlib import Path

from dreambooth_ray.config.load import dump_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.diffusion.components import load_pipeline
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import layout, manifest
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint import restore_newest, trained_weights
from dreambooth_ray.training.journal import read_metrics

_CARD = """\
# {identifier} {class_noun}

A Stable Diffusion model fine-tuned with DreamBooth (arXiv 2208.12242): the word
**{identifier}** before **{class_noun}** stands for one subject.

    from diffusers import StableDiffusionPipeline
    pipeline = StableDiffusionPipeline.from_pretrained("path/of/this/directory")
    pipeline("{prompt}").images[0]

| | |
| --- | --- |
| base model | {model} |
| steps | {steps} |
| photographs a step | {batch_size} |
| learning rate | {lr} |
| class images | {prior_count}, weight {prior_weight} |
| text encoder trained | {text_encoder} |
| loss, first and last tenth of the steps | {first:.4f}, {last:.4f} |

## Configuration

```yaml
{config}```
"""


def export_bundle(config: Config, directory: Path, run: Store) -> None:
    """Write `bundle/` of a run from its newest checkpoint; nothing if it is there, whole.

    directory: the base model's
    raises: CheckpointError if no intact checkpoint of the last step is there
    """
    if run.exists(f"{layout.BUNDLE}/{manifest.MANIFEST}"):
        return
    with tempfile.TemporaryDirectory(prefix="dreambooth-bundle-") as folder:
        restored = restore_newest(run, Path(folder) / "checkpoint")
        if restored is None or restored[0] != config.train.steps:
            at = restored[0] if restored else 0
            raise CheckpointError(
                f"{run.uri} is at step {at} of {config.train.steps}; "
                "finish it with `dreambooth resume`"
            )
        stage = Path(folder) / "bundle"
        pipeline = load_pipeline(directory)
        for part, weights in trained_weights(restored[1]).items():
            getattr(pipeline, part).load_state_dict(weights)
        # In float32: from_pretrained without a dtype mixes precisions over half weights.
        pipeline.save_pretrained(stage, safe_serialization=True)
        (stage / "card.md").write_text(_card(config, run))
        about: dict[str, object] = {
            "kind": "bundle",
            "identifier": config.subject.identifier,
            "class_noun": config.subject.class_noun,
            "prompt": config.instance_prompt,
            "step": restored[0],
            "resolution": config.train.resolution,
        }
        manifest.publish(run, layout.BUNDLE, stage, about)


def _card(config: Config, run: Store) -> str:
    losses = [float(r["loss"]) for r in read_metrics(run)]
    tenth = max(1, len(losses) // 10)
    return _CARD.format(
        identifier=config.subject.identifier,
        class_noun=config.subject.class_noun,
        prompt=config.instance_prompt,
        model=config.model.uri,
        steps=config.train.steps,
        batch_size=config.train.batch_size,
        lr=config.train.lr,
        prior_count=config.prior.count,
        prior_weight=config.prior.weight,
        text_encoder="yes" if config.train.text_encoder else "no",
        first=sum(losses[:tenth]) / tenth,
        last=sum(losses[-tenth:]) / tenth,
        config=dump_config(config),
    )


def bundle_about(directory: Path) -> dict[str, str]:
    """What a bundle's manifest says of it; empty for a plain model directory."""
    path = directory / manifest.MANIFEST
    if not path.is_file():
        return {}
    return {k: str(v) for k, v in json.loads(path.read_text())["about"].items()}
