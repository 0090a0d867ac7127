"""Which runs can be trained in one batch with others, and which of them together. Pure."""

import json
from collections.abc import Hashable

from dreambooth_ray.config.schema import Config

# Loggers that know one run in a process.
_SINGLE_RUN_LOGGERS = {"wandb", "mlflow"}


def find_shared_batch_obstacle(config: Config) -> str | None:
    """The setting that keeps a run from sharing a batch with others; None if nothing does."""
    train_config = config.train
    single_run_logger_names = sorted(_SINGLE_RUN_LOGGERS & set(config.tracking.loggers))
    batching_obstacles = {
        f"train.method={train_config.method}": train_config.method != "lora",
        "train.unet=false": not train_config.unet,
        "train.text_encoder=true": train_config.text_encoder,
        f"identifier.kind={config.identifier.kind}": config.identifier.kind != "rare_word",
        f"train.strategy={train_config.strategy}": train_config.strategy != "ddp",
        f"train.lora.kind={train_config.lora.kind}": train_config.lora.kind != "lora",
        "train.lora.rank_pattern": bool(train_config.lora.rank_pattern),
        "train.lora.alpha_pattern": bool(train_config.lora.alpha_pattern),
        # A subject's adapter is one vector, with one rate.
        "train.lora.loraplus_lr_ratio": train_config.lora.loraplus_lr_ratio is not None,
        f"train.optimizer={train_config.optimizer}": train_config.optimizer != "adamw",
        f"train.accumulate={train_config.accumulate}": train_config.accumulate != 1,
        f"train.precision={train_config.precision}": train_config.precision == "16-mixed",
        f"train.weight_dtype={train_config.weight_dtype}": train_config.weight_dtype != "float32",
        # The norms of weights in half would be others.
        f"train.lora.dora with train.precision={train_config.precision}": (
            train_config.lora.dora and train_config.precision != "32"
        ),
        "train.mask_background_target=output": train_config.has_background_output_preservation,
        f"train.mask_background={train_config.mask_background}": train_config.mask_background
        is not None,
        f"train.buckets={str(train_config.buckets).lower()}": train_config.buckets,
        f"train.resolution={list(train_config.sides_px)}": len(train_config.sides_px) > 1,
        f"train.compile={train_config.compile}": train_config.compile != "none",
        "train.deterministic=true": train_config.deterministic,
        f"model.quantization={config.model.quantization}": config.model.quantization != "none",
        f"choice.rule={config.choice.rule}": config.choice.rule != "last",
        f"tracking.loggers={single_run_logger_names}": bool(single_run_logger_names),
    }
    return next((setting for setting, is_met in batching_obstacles.items() if is_met), None)


def make_shared_batch_key(config: Config) -> Hashable:
    """Runs of equal ones can share a batch: one network, inputs of equal shapes, one storage.

    Seed, rates, schedule, steps, losses and their weights, and the rank are each run's own.
    config: without an obstacle, with the model's defaults filled in
    """
    train_config = config.train
    shared_settings = {
        "model": config.model.model_dump(mode="json"),
        "targets": train_config.lora.target_modules,
        "dora": train_config.lora.dora,
        "resolution": train_config.side_px,
        "batch_size": train_config.batch_size,
        "precision": train_config.precision,
        "gradient_checkpointing": train_config.gradient_checkpointing,
        "cuda_graphs": train_config.cuda_graphs,
        "has_class_images": bool(config.prior.num_images),
        "keeps_output": config.prior.keeps_output,
        "zero_terminal_snr": config.loss.zero_terminal_snr,
        "gpus": config.cluster.gpus,
        # Of workers, which all of a group have in common.
        "max_failures": config.cluster.max_failures,
        "wait_s": config.cluster.wait_s,
        "storage": config.storage.model_dump(mode="json"),
    }
    return json.dumps(shared_settings, sort_keys=True)
