"""Forecast of calls, tokens and dollars of open questions, printed before a stage's first call."""

import itertools
from collections.abc import Iterable

from mcr_jax.generate import spending
from mcr_jax.generate.api import Usage
from mcr_jax.generate.budget import TOKENS_PER_CHARACTER, Payments, characters
from mcr_jax.generate.ledger import Ledger
from mcr_jax.generate.questions import Question


def line(questions: Iterable[Question], payments: Payments, ledger: Ledger) -> str:
    """Returns one line about the calls for open questions; "" if there are none.

    Tokens are the means of the calls that the ledger holds of the same stage and service. Without
    such calls, tokens in are estimated from the characters of the prompts, and tokens out are the
    token limits, an upper bound.

    Args:
      questions: equal ones, of one name, are one call.
      payments: to the service.
      ledger: holds earlier calls.
    """
    unique = {question.name or id(question): question for question in questions}.values()
    if not unique:
        return ""
    tokens_in = tokens_out = 0.0
    recorded, stages, unseen = 0, 0, 0

    def stage(question: Question) -> str:
        return question.rows[0].key.stage

    for name, of_stage in itertools.groupby(sorted(unique, key=stage), key=stage):
        asked, stages = list(of_stage), stages + 1
        count, mean_in, mean_out = spending.means(ledger, name, payments.service)
        if count:
            recorded += count
            tokens_in += mean_in * len(asked)
            tokens_out += mean_out * len(asked)
        else:
            unseen += 1
            read = sum(characters(question.request) for question in asked)
            tokens_in += TOKENS_PER_CHARACTER * read
            tokens_out += sum(question.request.max_tokens for question in asked)
    usage = Usage(prompt=round(tokens_in), output=round(tokens_out))
    ways = [f"the mean of {spending.counted(recorded, 'recorded call')}"] if recorded else []
    ways += [f"{TOKENS_PER_CHARACTER:g} per character of the prompts"] if unseen else []
    bound = "at most" if unseen else "about"
    limits = " (the token limits)" if unseen == stages else ""
    cost = payments.cost(usage)
    price = spending.dollars(cost) if cost is None else f"{bound} {spending.dollars(cost)}"
    return (
        f"{payments.service}: {spending.counted(len(unique), 'call')}, about {usage.prompt:,} "
        f"tokens in ({' and '.join(ways)}), {bound} {usage.output:,} out{limits}, {price}"
    )
