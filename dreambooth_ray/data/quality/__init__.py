"""Checks of photographs before training: what is measured, and which issues follow."""
