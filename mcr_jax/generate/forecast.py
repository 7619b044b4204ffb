"""Forecast of calls, tokens and dollars of open questions, printed before a stage's first call."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from mcr_jax.generate import spending
from mcr_jax.generate.api import Usage
from mcr_jax.generate.batch import FEWEST
from mcr_jax.generate.budget import TOKENS_PER_CHARACTER, Amount, Payments, characters
from mcr_jax.generate.ledger import Ledger
from mcr_jax.generate.open_batches import without_open
from mcr_jax.generate.prices import BATCH
from mcr_jax.generate.questions import Question


def line(questions: Iterable[Question], payments: Payments, ledger: Ledger) -> str:
    """Returns one line about the calls for open questions; "" if there are none.

    Tokens are the means of the calls that the ledger holds of the same stage and service. Without
    such calls, tokens in are estimated from the characters of the prompts, and tokens out are the
    token limits, an upper bound. Calls in open batches are counted and not estimated again.

    Args:
      questions: equal ones, of one name, are one call.
      payments: to the service.
      ledger: holds earlier calls.
    """
    unique = {question.name or id(question): question for question in questions}.values()
    if not unique:
        return ""
    asked, taken = without_open([dataclasses.replace(each) for each in unique], ledger)
    begin = f"{payments.service}: "
    if taken:
        begin += f"{_calls(len(taken))} {'is' if len(taken) == 1 else 'are'} in open batches; "
    if not asked:
        return f"{begin}0 new"
    estimate = _Estimate(asked, payments.service, ledger)
    usage, direct, others = estimate.usage(asked), [], asked
    if payments.tier == BATCH:
        direct, others = _split_by_size(asked)
    costs = [
        payments.cost(estimate.usage(part), tier)
        for part, tier in ((direct, ""), (others, payments.tier))
        if part
    ]
    cost = None if None in costs else sum(costs)
    price = spending.dollars(cost) if cost is None else f"{estimate.bound} {spending.dollars(cost)}"
    if direct:
        price += f" ({_calls(len(direct))} at the full price: fewer than {FEWEST} are no batch)"
    limits = " (the token limits)" if estimate.unseen_only else ""
    amount = Amount(cost or 0.0, len(asked), usage.prompt + usage.output)
    short = [f"{field} may not suffice" for field in payments.budget.short(amount)]
    return begin + (
        f"{_calls(len(asked))}, about {usage.prompt:,} tokens in ({estimate.ways}), "
        f"{estimate.bound} {usage.output:,} out{limits}, {'; '.join((price, *short))}"
    )


class _Estimate:
    """Tokens of calls, by stage.

    Attributes:
      bound: "at most" where a token limit stands for the tokens out of a stage, else "about".
      ways: how tokens in are estimated.
      unseen_only: True if the ledger holds no call of any stage.
    """

    def __init__(self, questions: Sequence[Question], service: str, ledger: Ledger):
        stages = {_stage(question) for question in questions}
        means = {stage: spending.means(ledger, stage, service) for stage in stages}
        self._means = {stage: mean for stage, (count, *mean) in means.items() if count}
        recorded = sum(count for count, *_ in means.values())
        self.unseen_only, unseen = not self._means, len(self._means) < len(stages)
        ways = [f"the mean of {spending.counted(recorded, 'recorded call')}"] if recorded else []
        ways += [f"{TOKENS_PER_CHARACTER:g} per character of the prompts"] if unseen else []
        self.ways, self.bound = " and ".join(ways), "at most" if unseen else "about"

    def usage(self, questions: Iterable[Question]) -> Usage:
        """Returns the tokens of some of the calls."""
        pairs = [self._of(question) for question in questions]
        tokens = (round(sum(part)) for part in zip(*pairs, strict=True))
        return Usage(**dict(zip(("prompt", "output"), tokens, strict=False)))

    def _of(self, question: Question) -> Sequence[float]:
        by_limit = (
            TOKENS_PER_CHARACTER * characters(question.request),
            question.request.max_tokens,
        )
        return self._means.get(_stage(question), by_limit)


def _stage(question: Question) -> str:
    return question.rows[0].key.stage


def _split_by_size(questions: Iterable[Question]) -> tuple[list[Question], list[Question]]:
    """Returns the calls of a stage and model that are too few for a batch, and the others."""
    by_scope = collections.defaultdict(list)
    for question in questions:
        by_scope[_stage(question), question.rows[0].key.model].append(question)
    few, others = [], []
    for of_scope in by_scope.values():
        (few if len(of_scope) < FEWEST else others).extend(of_scope)
    return few, others


def _calls(number: int) -> str:
    return spending.counted(number, "call")
