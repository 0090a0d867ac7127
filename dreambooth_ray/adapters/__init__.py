"""Adapters of other trainers' files and of bundles, bound to a model's layers."""
