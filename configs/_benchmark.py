"""Sampling and judging of the benchmark, shared by the configs of published models."""

from ml_collections import ConfigDict


def measure(c: ConfigDict, *, max_tokens: int) -> None:
    """Sets ten answers per case, of up to `max_tokens` tokens, and Gemini as the judge."""
    c.sample.n = 10
    c.sample.prompt_tokens = 2048
    c.sample.max_tokens = max_tokens
    c.sample.slots = 64
    c.judge.name = "gemini"
