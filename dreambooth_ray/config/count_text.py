"""Counts in sentences."""


def describe_count(number: int, noun: str) -> str:
    """ "1 worker" or "3 workers". noun: one that takes an s"""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
