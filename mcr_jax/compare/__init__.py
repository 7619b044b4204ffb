"""Comparison of models of one or more workdirs on their common cases, with a page."""
