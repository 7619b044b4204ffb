"""Fictional cases and settings of a training run that takes seconds."""

import dataclasses

from mcr_jax import config as configs
from mcr_jax.cases import Case
from mcr_jax.prompts import Prompt

PROMPT = Prompt("short", "{{case_prompt}}")


def case(number: int, split: str) -> Case:
    """A fictional case of ragged length."""
    findings = " and ".join(("violet nail moons", "green noons", "slow pupils")[: 1 + number % 3])
    return Case(
        case_prompt=f"Patient {number} had {findings}.",
        diagnostic_reasoning=f"1. Out: {'rime ' * (number % 4)}\n2. In: {findings}.",
        final_diagnosis=("Brindle rime", "Lorn's gulletry", "Ombrel palsy")[number % 3],
        split=split,
    )


CASES = {
    "train": [case(n, "train") for n in range(60)],
    "val": [case(n, "val") for n in range(60, 67)],
}
LONG = dataclasses.replace(CASES["train"][0], case_prompt="frost " * 300)
CASES["train"].append(LONG)


def settings(**changes):
    made = configs.default()
    made.optim.warmup_steps = 2
    made.train.update(steps=6, rows=8, row_tokens=160, eval_every=2, checkpoint_every=3)
    made.mesh.update(data=1, fsdp=8, tensor=1)
    made.update_from_flattened_dict(changes)
    return made.lock()
