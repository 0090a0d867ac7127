"""What the family is held against: the tiny model `sd3`, and steps of diffusers' script."""

from tests.families.proven_families import ProvenModel

MODEL = ProvenModel(
    golden=("sd3",),
    inputs={"hidden": "encoder_hidden_states", "pooled": "pooled_projections"},
    # It compares images, and trains CLIP in one case.
    compares_clean=True,
    published="sd3-medium",
    left_out=frozenset({"text_encoder"}),
)
