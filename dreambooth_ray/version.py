"""The version, by itself: what builds the package reads it, and imports nothing."""

__version__ = "0.1.0"
