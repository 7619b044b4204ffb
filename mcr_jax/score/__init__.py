"""Verdicts to numbers that can be trusted: means, intervals, paired tests, and their check."""
