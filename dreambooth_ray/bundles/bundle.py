"""The bundle of a finished run: a diffusers directory, a card and a manifest."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from diffusers import DDIMScheduler
from torch import Tensor

from dreambooth_ray.config.load import dump_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.run_inputs import read_pins
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models import lora, tokens
from dreambooth_ray.models.components import Components, build_pipeline, load_components
from dreambooth_ray.models.family import ModelFamily, find_family
from dreambooth_ray.models.model_directory import base_directory, model_hash
from dreambooth_ray.models.model_source import find_shipped, make_absolute, parse_source
from dreambooth_ray.models.streamed_denoiser import list_denoiser_sources, stream_denoiser
from dreambooth_ray.models.trainable_params import (
    apply_method,
    check_trainable_params,
    load_part,
)
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.fence import find_checkpoint
from dreambooth_ray.storage.scratch import scratch_folder
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.convert import verified_weights
from dreambooth_ray.training.checkpoint.download import CheckpointFiles, restore_weights
from dreambooth_ray.training.metrics_log import read_metrics
from dreambooth_ray.training.run_state import RunState

_CARD = """\
# {title}

A model of {family}, fine-tuned with DreamBooth (arXiv 2208.12242). What stands for one subject:
{meaning}.

{usage}

| | |
| --- | --- |
| base model | {model} |
| method | {method} |
| steps | {steps} |
| photographs a step | {batch_size} |
| learning rate | {lr} |
| kept beside it | {kept} |
| text encoder trained | {text_encoder} |
| loss, first and last tenth of the steps | {first:.4f}, {last:.4f} |

## Configuration

```yaml
{config}```
"""


def export_bundle(
    config: Config,
    directory: Path,
    run: Store,
    state: RunState,
    kept_files: CheckpointFiles | None = None,
    load: Callable[[Path], Components] = load_components,
) -> None:
    """Write `bundle/` of a trained run; nothing if it is there, whole.

    With choice.rule=best, from the checkpoint with the best evaluation. Of the checkpoint only the
    weights are read, one after the other, and hashed as they are: nothing is committed of a
    damaged one. Its other files are not read: storage is asked for their sizes and checksums. Where
    weights and optimizer share files (sharded strategies, earlier versions), all are read.

    directory: the base model's
    kept_files: of the checkpoint that the bundle is made of, where this machine still has them
    load: a model's parts, to put the weights into
    raises: CheckpointError if the run is not trained to its end or its checkpoint is damaged
    """
    if state.is_bundled:
        return
    if not state.is_trained:
        raise CheckpointError(
            f"{run.uri} is at step {state.committed_step} of {state.last_step}; finish it with "
            "`dreambooth resume`"
        )
    with scratch_folder("bundle", config.storage.scratch) as folder:
        step = state.bundle_step
        files, stage = _open_checkpoint(run, step, folder, kept_files), folder / "bundle"
        with verified_weights(files) as weights:
            about = _write_weights(config, directory, weights, stage, load)
        base = _find_base(config, run)
        if about["kind"] == "adapter":
            about["base_model"] = base
        family = find_family(base_directory(directory))
        card = _render_card(config, family, run, base, step, state.last_step)
        (stage / "card.md").write_text(card)
        about |= {"step": step, "created_at": time.time()}
        manifest.publish_folder(run, paths.BUNDLE, stage, about)


def _open_checkpoint(
    run: Store, step: int, folder: Path, kept_files: CheckpointFiles | None
) -> CheckpointFiles:
    """raises: CheckpointError if a file of it is not in storage, or not what was sent"""
    checkpoint = find_checkpoint(run, step)
    if kept_files is None:
        return restore_weights(run, checkpoint, folder / "checkpoint")
    if loss := manifest.find_loss(run, checkpoint.name):
        raise CheckpointError(f"{run.uri}/{loss}")
    return kept_files


def _write_weights(
    config: Config,
    directory: Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    stage: Path,
    load: Callable[[Path], Components],
) -> dict[str, object]:
    """Write the weights to `stage`; returns the manifest's `about`."""
    parts = load(directory)
    apply_method(config, parts)
    check_trainable_params(parts, weights)
    about = _describe(config)
    name = parts.family.denoiser.name
    for encoder_name, encoder in parts.text_encoders.items():
        load_part(encoder, weights.get(encoder_name, {}))
    if config.train.method == "lora":
        load_part(parts.denoiser, weights.get(name, {}))
        _save_adapters(parts, stage)
        if config.loss.zero_terminal_snr:
            parts.schedule.save_pretrained(stage / paths.ADAPTER_SCHEDULER)
        return about | {"kind": "adapter", "base_hash": model_hash(directory)}
    tokens.fold_embeddings(parts)
    sources = list_denoiser_sources(parts.denoiser, name, directory, weights.get(name))
    stream_denoiser(parts.denoiser, sources)
    pipeline = build_pipeline(parts, directory)
    if config.loss.zero_terminal_snr:
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )
    # In float32: from_pretrained without a dtype mixes precisions over half weights.
    pipeline.save_pretrained(stage, safe_serialization=True)
    return about


def _find_base(config: Config, run: Store) -> str:
    """The base model as it is found again: of the hub, at the commit that the run began with."""
    source = make_absolute(config.model.source)
    source = read_pins(run).get(source, source)
    is_folder = not find_shipped(source) and parse_source(source).is_directory
    return str(Path(source).resolve()) if is_folder else source


def _save_adapters(parts: Components, stage: Path) -> None:
    for name, network in parts.networks.items():
        if lora.has_adapters(network):
            lora.save_adapters(network, stage / paths.ADAPTER / name)
    tokens.save_words(tokens.learned_embeddings(parts), stage / paths.ADAPTER)


def _describe(config: Config) -> dict[str, object]:
    """What a bundle's manifest says of its subjects."""
    about: dict[str, object] = {
        "kind": "bundle",
        "method": config.train.method,
        "identifier": config.word(config.subject),
        "class_noun": config.subject.class_noun,
        "prompt": config.instance_prompt,
        "subjects": [
            {
                "identifier": config.word(s),
                "class_noun": s.class_noun,
                "prompt": config.instance_prompts(s)[0],
            }
            for s in config.all_subjects
        ],
        "resolution": config.train.side_px,
    }
    if config.subject.name is not None:
        about["subject"] = config.subject.name
    return about


_USE = """\
    from diffusers import {pipeline}
    pipeline = {pipeline}.from_pretrained("path/of/this/directory")
    pipeline("{prompt}").images[0]"""
_USE_ADAPTER = """\
Adapters for `{model}`, in peft's format under adapter/. `dreambooth generate` takes this directory
as it is; `dreambooth export` writes one file that diffusers, A1111 and ComfyUI read."""


def _render_card(
    config: Config, family: ModelFamily, run: Store, base: str, step: int, last: int
) -> str:
    losses = [float(r["loss"]) for r in read_metrics(run)]
    usage = _USE_ADAPTER if config.train.method == "lora" else _USE
    tenth = max(1, len(losses) // 10)
    return _CARD.format(
        title=", ".join(f"{config.word(s)} {s.class_noun}" for s in config.all_subjects),
        meaning="; ".join(
            f"**{config.word(s)}** before **{s.class_noun}**" for s in config.all_subjects
        ),
        family=family.title,
        usage=usage.format(
            prompt=config.instance_prompt, model=base, pipeline=family.pipeline_classes[0]
        ),
        method=config.train.method,
        model=base,
        steps=last if step == last else f"{step} of {last}, the best by evaluation",
        batch_size=config.train.batch_size,
        lr=config.train.lr,
        kept=_describe_kept(config),
        text_encoder="yes" if config.train.text_encoder else "no",
        first=sum(losses[:tenth]) / tenth,
        last=sum(losses[-tenth:]) / tenth,
        config=dump_config(config),
    )


def _describe_kept(config: Config) -> str:
    prior = config.prior
    kept = []
    if prior.num_images:
        kept.append(f"{prior.num_images} class images, weight {prior.weight:g}")
    if prior.keeps_output:
        kept.append(f"the base model's output, weight {prior.output_weight:g}")
    if config.train.keeps_background:
        weight = config.train.mask_background
        kept.append(f"the base model's output outside the masks, weight {weight:g}")
    return "; ".join(kept) or "nothing"


def read_bundle_about(directory: Path) -> dict[str, str]:
    """The `about` of a bundle's manifest; empty for a plain model directory."""
    path = directory / manifest.MANIFEST
    if not path.is_file():
        return {}
    return {k: str(v) for k, v in json.loads(path.read_text())["about"].items()}
