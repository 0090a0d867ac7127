"""Load, check and change Stable Diffusion models."""
