"""Machines: where Ray comes from."""
