"""The bundle of a finished run: a diffusers directory, a card and a manifest."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from diffusers import DDIMScheduler
from torch import Tensor

from dreambooth_ray.config.load import dump_config
from dreambooth_ray.config.machines import MACHINE_SECTIONS
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.run_inputs import read_model_pins
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models import lora, tokens
from dreambooth_ray.models.components import Components, build_pipeline, load_components
from dreambooth_ray.models.family import ModelFamily, find_family
from dreambooth_ray.models.model_directory import base_directory, model_hash
from dreambooth_ray.models.model_source import find_packaged_model, make_absolute, parse_source
from dreambooth_ray.models.streamed_denoiser import list_denoiser_sources, patch_save_pretrained
from dreambooth_ray.models.trainable_params import (
    apply_train_method,
    check_trainable_params,
    load_part_weights,
)
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.fence import CheckpointId, find_checkpoint
from dreambooth_ray.storage.scratch import scratch_folder
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.convert import verified_weights
from dreambooth_ray.training.checkpoint.download import CheckpointFiles, download_weight_files
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

    What is written follows from the checkpoint alone, byte for byte: of two holders, one of whom
    was frozen and woke up, the one writes what the other has written.

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
        step = state.bundled_checkpoint_step
        checkpoint = find_checkpoint(run, step)
        created_s = manifest.read_artifact_metadata(run, checkpoint.name).get("created_at")
        checkpoint_files = _open_checkpoint(run, checkpoint, folder, kept_files)
        stage_folder = folder / "bundle"
        with verified_weights(checkpoint_files) as weights:
            bundle_metadata = _write_weights(config, directory, weights, stage_folder, load)
        base_model = _resolve_base_model_source(config, run)
        if bundle_metadata["kind"] == "adapter":
            bundle_metadata["base_model"] = base_model
        family = find_family(base_directory(directory))
        card = _render_card(config, family, run, base_model, step, state.last_step)
        (stage_folder / "card.md").write_text(card)
        # Checkpoints of earlier versions do not say it.
        bundle_metadata |= {"step": step, "created_at": created_s or time.time()}
        manifest.upload_folder_with_manifest(run, paths.BUNDLE, stage_folder, bundle_metadata)


def _open_checkpoint(
    run: Store, checkpoint: CheckpointId, folder: Path, kept_files: CheckpointFiles | None
) -> CheckpointFiles:
    """raises: CheckpointError if a file of it is not in storage, or not what was sent"""
    if kept_files is None:
        return download_weight_files(run, checkpoint, folder / "checkpoint")
    if mismatched_file := manifest.find_size_or_checksum_mismatch(run, checkpoint.name):
        raise CheckpointError(f"{run.uri}/{mismatched_file}")
    return kept_files


def _write_weights(
    config: Config,
    directory: Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    stage_folder: Path,
    load: Callable[[Path], Components],
) -> dict[str, object]:
    """Write the weights to `stage_folder`; returns the manifest's `about`."""
    components = load(directory)
    apply_train_method(config, components)
    check_trainable_params(components, weights)
    bundle_metadata = _describe_subjects(config)
    denoiser_name = components.family.denoiser.name
    for encoder_name, encoder in components.text_encoders.items():
        load_part_weights(encoder, weights.get(encoder_name, {}))
    if config.train.method == "lora":
        load_part_weights(components.denoiser, weights.get(denoiser_name, {}))
        _save_adapters(components, stage_folder)
        if config.loss.zero_terminal_snr:
            components.schedule.save_pretrained(stage_folder / paths.ADAPTER_SCHEDULER)
        return bundle_metadata | {"kind": "adapter", "base_hash": model_hash(directory)}
    tokens.fold_embeddings(components)
    denoiser_tensor_sources = list_denoiser_sources(
        components.denoiser, denoiser_name, directory, weights.get(denoiser_name)
    )
    patch_save_pretrained(components.denoiser, denoiser_tensor_sources)
    pipeline = build_pipeline(components, directory)
    if config.loss.zero_terminal_snr:
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )
    # In float32: from_pretrained without a dtype mixes precisions over half weights.
    pipeline.save_pretrained(stage_folder, safe_serialization=True)
    return bundle_metadata


def _resolve_base_model_source(config: Config, run: Store) -> str:
    """The base model as it is found again: of the hub, at the commit that the run began with."""
    model_source = make_absolute(config.model.source)
    model_source = read_model_pins(run).get(model_source, model_source)
    is_folder = not find_packaged_model(model_source) and parse_source(model_source).is_directory
    return str(Path(model_source).resolve()) if is_folder else model_source


def _save_adapters(components: Components, stage_folder: Path) -> None:
    for name, network in components.networks.items():
        if lora.has_adapters(network):
            lora.save_adapters(network, stage_folder / paths.ADAPTER / name)
    tokens.save_words(tokens.learned_embeddings(components), stage_folder / paths.ADAPTER)


def _describe_subjects(config: Config) -> dict[str, object]:
    """What a bundle's manifest says of its subjects."""
    bundle_metadata: dict[str, object] = {
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
        bundle_metadata["subject"] = config.subject.name
    return bundle_metadata


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
    usage_template = _USE_ADAPTER if config.train.method == "lora" else _USE
    tenth_of_steps = max(1, len(losses) // 10)
    return _CARD.format(
        title=", ".join(f"{config.word(s)} {s.class_noun}" for s in config.all_subjects),
        meaning="; ".join(
            f"**{config.word(s)}** before **{s.class_noun}**" for s in config.all_subjects
        ),
        family=family.title,
        usage=usage_template.format(
            prompt=config.instance_prompt, model=base, pipeline=family.pipeline_classes[0]
        ),
        method=config.train.method,
        model=base,
        steps=last if step == last else f"{step} of {last}, the best by evaluation",
        batch_size=config.train.batch_size,
        lr=config.train.lr,
        kept=_describe_preservation(config),
        text_encoder="yes" if config.train.text_encoder else "no",
        first=sum(losses[:tenth_of_steps]) / tenth_of_steps,
        last=sum(losses[-tenth_of_steps:]) / tenth_of_steps,
        config=dump_config(config, MACHINE_SECTIONS),
    )


def _describe_preservation(config: Config) -> str:
    prior_config = config.prior
    preservation_phrases = []
    if prior_config.num_images:
        preservation_phrases.append(
            f"{prior_config.num_images} class images, weight {prior_config.weight:g}"
        )
    if prior_config.keeps_output:
        preservation_phrases.append(
            f"the base model's output, weight {prior_config.output_weight:g}"
        )
    if config.train.has_background_output_preservation:
        background_weight = config.train.mask_background
        preservation_phrases.append(
            f"the base model's output outside the masks, weight {background_weight:g}"
        )
    return "; ".join(preservation_phrases) or "nothing"


def read_bundle_metadata(directory: Path) -> dict[str, str]:
    """The `about` of a bundle's manifest; empty for a plain model directory."""
    manifest_path = directory / manifest.MANIFEST
    if not manifest_path.is_file():
        return {}
    return {k: str(v) for k, v in json.loads(manifest_path.read_text())["about"].items()}
