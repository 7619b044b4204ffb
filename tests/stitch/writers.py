"""Rule-based writer of traces, its cases and its config."""

import random

import paraphrase

from mcr_jax import config as configs
from mcr_jax import prompts, synthetic
from mcr_jax.generate.api import Outcome, Reply

CASES = synthetic.cases(5, {"train": 6, "val": 2})
PROMPT = prompts.load("stitch")


def good(case, index=0):
    """A trace that says all that the statements say."""
    return paraphrase.paraphrase(case, random.Random(f"{case.fingerprint}/{index}"))


class Writer:
    """A `Generator` of rules: (case, sample index) to text, or to the outcome without one."""

    concurrency = 1

    def __init__(self, says, identity="writer/1"):
        self.says, self.identity, self.asked = says, identity, []
        self.by_key = {case.fingerprint: case for case in CASES}

    def generate(self, requests):
        for request in requests:
            for index in request.wanted:
                self.asked.append((request.key, index))
                self.last = request
                said = self.says(self.by_key[request.key], index)
                if isinstance(said, Outcome):
                    said = ("", said)
                elif isinstance(said, str):
                    said = (said, Outcome.OK)
                yield Reply(
                    key=request.key,
                    index=index,
                    text=said[0],
                    outcome=said[1],
                    model_version="writer-1",
                    error="" if said[1] is Outcome.OK else "told to",
                )


def config(**changes):
    """The default config with changes of its section stitch."""
    made = configs.default()
    with made.unlocked():
        made.update_from_flattened_dict({f"stitch.{k}": v for k, v in changes.items()})
    return made
