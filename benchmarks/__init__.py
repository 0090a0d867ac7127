"""Throughput against peers, in one run, as ratios; a theme a module."""
