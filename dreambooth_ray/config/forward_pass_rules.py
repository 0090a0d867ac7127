"""How a step's forwards are computed, by the whole configuration."""

from dreambooth_ray.config.schema import Config


def can_be_graphed(config: Config) -> bool:
    """Whether a GPU may launch a step as CUDA graphs: one forward and backward, without hooks."""
    train_config = config.train
    return (
        train_config.cuda_graphs
        and not train_config.buckets
        and train_config.strategy == "ddp"
        and config.cluster.span.max == 1
        and train_config.accumulate == 1
        and not train_config.gradient_checkpointing
    )


def needs_base_output(config: Config) -> bool:
    """Whether steps ask for the base model's output beside the trained one's."""
    return config.prior.keeps_output or config.train.has_background_output_preservation
