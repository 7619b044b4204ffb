"""One config in one workdir: its parts, what is frozen in it, and what is done."""
