"""Which values keys of a part's configuration may have, as far as loading depends on them.

Keys that are not named here have no effect on whether a part loads. Nothing heavy is imported.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)
from pydantic import ValidationError as PydanticError

from dreambooth_ray.models.part_configs import strip_part_number

Count = Annotated[StrictInt, Field(ge=1)]
Counts = Annotated[list[Count], Field(min_length=1)]
Number = StrictInt | StrictFloat
Share = Annotated[Number, Field(ge=0, le=1)]
Activation = Literal["swish", "silu", "mish", "gelu", "relu"]
Token = StrictStr | dict[str, Any]


class _PartConfig(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class _UNetConfig(_PartConfig):
    in_channels: Count
    out_channels: Count
    block_out_channels: Counts
    down_block_types: list[
        Literal[
            "DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D",
            "SimpleCrossAttnDownBlock2D",
        ]
    ] = []  # fmt: skip
    up_block_types: list[
        Literal[
            "UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D",
            "SimpleCrossAttnUpBlock2D",
        ]
    ] = []  # fmt: skip
    mid_block_type: Literal["UNetMidBlock2DCrossAttn"] = "UNetMidBlock2DCrossAttn"
    layers_per_block: Count | Counts
    transformer_layers_per_block: Count | Counts = 1
    attention_head_dim: Count | Counts
    num_attention_heads: None = None
    cross_attention_dim: Count | Counts
    only_cross_attention: StrictBool | list[StrictBool] = False
    act_fn: Activation = "silu"
    time_embedding_act_fn: Activation | None = None
    timestep_post_act: Activation | None = None
    time_embedding_type: Literal["positional"] = "positional"
    time_cond_proj_dim: None = None
    reverse_transformer_layers_per_block: None = None
    encoder_hid_dim_type: None = None
    resnet_time_scale_shift: Literal["default"] = "default"
    conv_in_kernel: Count = 3
    conv_out_kernel: Count = 3
    downsample_padding: Literal[0, 1] = 1
    freq_shift: Number = 0
    dropout: Share = 0.0
    norm_num_groups: Count
    norm_eps: Number = 1e-5
    mid_block_scale_factor: Number = 1


class _VAEConfig(_PartConfig):
    in_channels: Count
    out_channels: Count
    latent_channels: Count
    block_out_channels: Counts
    down_block_types: list[Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]] = []
    up_block_types: list[Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]] = []
    layers_per_block: Count
    norm_num_groups: Count
    act_fn: Activation = "silu"
    sample_size: Number | Annotated[list[Number], Field(min_length=1)] = 32
    scaling_factor: Number


class _TextEncoderConfig(_PartConfig):
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    max_position_embeddings: Count
    projection_dim: StrictInt | None = None
    hidden_act: Literal[
        "quick_gelu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "relu",
        "silu", "swish", "mish", "tanh", "linear",
    ]  # fmt: skip
    attention_dropout: Number | None = 0.0
    # transformers takes no integer for these.
    layer_norm_eps: InstanceOf[float] = 1e-5
    initializer_range: InstanceOf[float] = 0.02
    initializer_factor: InstanceOf[float] = 1.0
    bos_token_id: StrictInt | None = 0
    eos_token_id: StrictInt | Annotated[list[StrictInt], Field(min_length=1)] = 2
    pad_token_id: StrictInt | None = 1
    dtype: StrictStr | None = Field(None, pattern=r"^(b?float(16|32|64))$")


class _SchedulerConfig(_PartConfig):
    num_train_timesteps: Count
    beta_start: Annotated[Number, Field(ge=0)] = 0.0001
    beta_end: Annotated[Number, Field(ge=0)] = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: Annotated[list[Number], Field(min_length=2)] | None = None
    timestep_spacing: Literal["linspace", "leading", "trailing"] = "leading"


class _FlowSchedulerConfig(_PartConfig):
    num_train_timesteps: Count = 1000
    shift: Annotated[Number, Field(gt=0)] = 1.0
    use_dynamic_shifting: StrictBool = False
    base_shift: Number | None = 0.5
    max_shift: Number | None = 1.15
    base_image_seq_len: Count | None = 256
    max_image_seq_len: Count | None = 4096
    shift_terminal: Number | None = None
    time_shift_type: Literal["exponential", "linear"] = "exponential"


class _FlowDPMSchedulerConfig(_PartConfig):
    """DPM-Solver++ along straight lines."""

    num_train_timesteps: Count = 1000
    prediction_type: Literal["flow_prediction"]
    use_flow_sigmas: Literal[True]
    flow_shift: Annotated[Number, Field(gt=0)] = 1.0
    use_karras_sigmas: Literal[False] = False
    use_lu_lambdas: Literal[False] = False
    use_exponential_sigmas: Literal[False] = False
    use_beta_sigmas: Literal[False] = False
    use_dynamic_shifting: Literal[False] = False
    final_sigmas_type: Literal["zero"] = "zero"


class _TokenizerConfig(_PartConfig):
    bos_token: Token = ""
    eos_token: Token = ""
    unk_token: Token | None = ""
    pad_token: Token = ""
    model_max_length: Annotated[Number, Field(gt=0)] | None = None


_CONFIGS: dict[str, type[_PartConfig]] = {
    "unet": _UNetConfig,
    "vae": _VAEConfig,
    "text_encoder": _TextEncoderConfig,
    "scheduler": _SchedulerConfig,
    "flow_scheduler": _FlowSchedulerConfig,
    "flow_dpm_scheduler": _FlowDPMSchedulerConfig,
    "tokenizer": _TokenizerConfig,
}


_ODD_LAYERS = {
    "cross_attention_norm": ("layer_norm", "group_norm"),
    "attention_type": ("gated", "gated-text-image"),
    "class_embed_type": ("timestep", "identity", "projection", "simple_projection"),
}


def find_bad_value(part: str, config: Mapping[str, Any]) -> str:
    """The first key whose value no part can be built with, in words; "" where there is none.

    config: the part's, with defaults
    """
    try:
        _CONFIGS[strip_part_number(part)].model_validate(dict(config))
    except PydanticError as error:
        first_error = error.errors()[0]
        bad_key, bad_value = first_error["loc"][0], config.get(str(first_error["loc"][0]))
        return (
            f"{bad_key}={bad_value!r} is no value that this program loads "
            f"({first_error['msg'].lower()})"
        )
    return (
        _find_unsupported_unet_layers(config) or _find_bad_list_length(config)
        if part == "unet"
        else ""
    )


def _find_unsupported_unet_layers(config: Mapping[str, Any]) -> str:
    """Keys of the UNet that add layers which no Stable Diffusion has; other values do nothing."""
    for key in ("dual_cross_attention", "class_embeddings_concat"):
        if config.get(key):
            return f"{key}={config[key]!r} is of another kind of model"
    for key, unsupported_values in _ODD_LAYERS.items():
        if config.get(key) in unsupported_values:
            return f"{key}={config[key]!r} is of another kind of model"
    time_embedding_width = config.get("time_embedding_dim")
    if time_embedding_width and (type(time_embedding_width) is not int or time_embedding_width < 1):
        return f"time_embedding_dim={time_embedding_width!r} is no width"
    return ""


def _find_bad_list_length(config: Mapping[str, Any]) -> str:
    """Lists of the UNet have one entry a block."""
    num_unet_blocks = len(config["block_out_channels"])
    for key in (
        "layers_per_block", "transformer_layers_per_block", "attention_head_dim",
        "cross_attention_dim", "only_cross_attention",
    ):  # fmt: skip
        block_values = config.get(key)
        if isinstance(block_values, list) and len(block_values) != num_unet_blocks:
            return f"{key}={block_values!r} has not one entry for each of {num_unet_blocks} blocks"
    return ""
