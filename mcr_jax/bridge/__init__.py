"""Bridge between an old and a new judge of the same completions."""
