"""Estimate the memory of sampling and of training."""
