"""Which runs of diffusers' training scripts are recorded, by family."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import SanaPipeline

INSTANCE_PROMPT, CLASS_PROMPT = "a photo of sks robot", "a photo of robot"
PRIOR_LOSS_WEIGHT = 0.7
RANK = 2
_COMMON = ["--resolution=32", "--center_crop", "--seed=7", "--lr_warmup_steps=0"]
# Without a rate weights stay, so each step's gradients belong to the same ones.
_UNMOVED = ["--learning_rate=0", "--mixed_precision=no", "--dataloader_num_workers=0"]
_PRIOR = [
    "--with_prior_preservation",
    f"--class_prompt={CLASS_PROMPT}",
    f"--prior_loss_weight={PRIOR_LOSS_WEIGHT}",
    "--num_class_images=4",
    "--train_batch_size=1",
]
_TWO_ROWS = ["--train_batch_size=2"]


@dataclass(frozen=True)
class GoldenCase:
    """One run of a script. changes: of the scheduler's configuration"""

    arguments: list[str]
    num_steps: int = 2
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_prior(self) -> bool:
        return "--with_prior_preservation" in self.arguments


@dataclass(frozen=True)
class GoldenFamily:
    """A script and its cases.

    captioned: cases run as with a caption for each image
    settings: of the script's arguments, those that a command line can't give as it takes them
    float32: classes of the script, of transformers, that it would turn to bfloat16, which rounds
        otherwise on other machines: they are turned to float32
    """

    tiny_model: str
    script: str
    arguments: list[str]
    cases: Mapping[str, GoldenCase]
    captioned: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    float32: tuple[str, ...] = ()

    def all_arguments(self, case: str) -> list[str]:
        """Without those that name folders."""
        prompt = f"--instance_prompt={INSTANCE_PROMPT}"
        steps = f"--max_train_steps={self.cases[case].num_steps}"
        rows = self.cases[case].arguments
        return [prompt, *_COMMON, *_UNMOVED, *self.arguments, steps, *rows]


_V = {"prediction_type": "v_prediction"}
_DIFFUSION_CASES = {
    "plain": GoldenCase(_TWO_ROWS, num_steps=3),
    "prior": GoldenCase(_PRIOR),
    "text_encoder": GoldenCase([*_PRIOR, "--train_text_encoder"]),
    "snr": GoldenCase([*_TWO_ROWS, "--snr_gamma=0.5"]),
    "v_prediction": GoldenCase(_TWO_ROWS, changes=_V),
    "snr_v_prediction": GoldenCase([*_TWO_ROWS, "--snr_gamma=0.5"], changes=_V),
}
_FLOW_CASES = {
    "plain": GoldenCase(_TWO_ROWS, num_steps=3),
    "prior": GoldenCase(_PRIOR),
    "logit_normal": GoldenCase([*_TWO_ROWS, "--weighting_scheme=logit_normal"]),
    "mode": GoldenCase([*_TWO_ROWS, "--weighting_scheme=mode"]),
    "sigma_sqrt": GoldenCase([*_TWO_ROWS, "--weighting_scheme=sigma_sqrt"]),
    "cosmap": GoldenCase([*_TWO_ROWS, "--weighting_scheme=cosmap"]),
}
_FEW_FLOW_CASES = {
    "plain": GoldenCase(_TWO_ROWS),
    "prior": GoldenCase(_PRIOR),
}
_LORA = [f"--rank={RANK}", "--repeats=8"]
_SCALED_LORA = [*_LORA, f"--lora_alpha={RANK}"]
_SANA_CALL = inspect.signature(SanaPipeline.__call__).parameters
SANA_INSTRUCTION: list[str] = _SANA_CALL["complex_human_instruction"].default
GOLDEN_FAMILIES = {
    "sd15": GoldenFamily("sd15", "train_dreambooth.py", [], _DIFFUSION_CASES),
    "sd15-lora": GoldenFamily(
        "sd15",
        "train_dreambooth_lora.py",
        [f"--rank={RANK}"],
        {
            "plain": GoldenCase(_TWO_ROWS),
            "text_encoder": GoldenCase([*_PRIOR, "--train_text_encoder"]),
        },
    ),
    "sdxl": GoldenFamily("sdxl", "train_dreambooth_lora_sdxl.py", _LORA, _DIFFUSION_CASES),
    "sd3": GoldenFamily(
        "sd3",
        "train_dreambooth_lora_sd3.py",
        # The script's default for T5 is CLIP's length, and not what its pipeline reads.
        [*_LORA, "--max_sequence_length=256"],
        {
            **_FEW_FLOW_CASES,
            "sigma_sqrt": GoldenCase([*_TWO_ROWS, "--weighting_scheme=sigma_sqrt"]),
            # With class images it embeds their caption by CLIP alone, and fails.
            "text_encoder": GoldenCase([*_TWO_ROWS, "--train_text_encoder", "--text_encoder_lr=0"]),
        },
    ),
    "flux1-dev": GoldenFamily(
        "flux1-dev",
        "train_dreambooth_lora_flux.py",
        _SCALED_LORA,
        # Of the prompts of several rows, then, the script makes one row, and fails; a second step
        # would be with other weights, as the encoder's rate is not 0.
        _FEW_FLOW_CASES
        | {"text_encoder": GoldenCase(["--train_batch_size=1", "--train_text_encoder"], 1)},
    ),
    "z-image": GoldenFamily(
        "z-image",
        "train_dreambooth_lora_z_image.py",
        _SCALED_LORA,
        _FLOW_CASES,
        # Without captions the script concatenates lists as if they were tensors, and fails.
        captioned=("prior",),
    ),
    "qwen-image": GoldenFamily(
        "qwen-image", "train_dreambooth_lora_qwen_image.py", _SCALED_LORA, _FLOW_CASES
    ),
    "krea2": GoldenFamily(
        "krea2",
        "train_dreambooth_lora_krea2.py",
        _SCALED_LORA,
        _FEW_FLOW_CASES | {"sigma_sqrt": GoldenCase([*_TWO_ROWS, "--weighting_scheme=sigma_sqrt"])},
    ),
    "sana": GoldenFamily(
        "sana",
        "train_dreambooth_lora_sana.py",
        _SCALED_LORA,
        _FLOW_CASES,
        # Without captions the script has one row of a prompt for all rows of images, and fails.
        captioned=("plain", "logit_normal", "mode", "sigma_sqrt", "cosmap"),
        # As its pipeline has it; the command line's text would be taken letter by letter.
        settings={"complex_human_instruction": SANA_INSTRUCTION},
        float32=("Gemma2Model",),
    ),
    "flux2-klein": GoldenFamily(
        "flux2-klein",
        "train_dreambooth_lora_flux2_klein.py",
        # The script's default is of FLUX.2 dev's layers, and not what its pipeline reads.
        [*_SCALED_LORA, "--text_encoder_out_layers", "9", "18", "27"],
        _FLOW_CASES,
    ),
    "flux2-dev": GoldenFamily(
        "flux2-dev", "train_dreambooth_lora_flux2.py", _SCALED_LORA, _FEW_FLOW_CASES
    ),
}
