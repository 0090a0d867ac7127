"""DreamBooth fine-tuning of Stable Diffusion on Ray clusters."""

__version__ = "0.1.0"
