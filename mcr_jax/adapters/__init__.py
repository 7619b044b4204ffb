"""Adapters for other harnesses, as thin as they can be; each is imported only where it is used.

    inspect_log.py     writes a log of inspect_ai; needs no package
    inspect_task.py    a task of inspect_ai; extra [inspect]
    verifiers_env.py   an environment of verifiers; extra [verifiers]

Dataset, prompts, parsing, judges and scoring are those of the rest of mcr_jax, through grading.py.
"""
