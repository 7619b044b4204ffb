"""Limits of config.budget over a whole workdir, and the payments to one service under them.

The ledger holds what earlier runs spent. A call starts only if the largest amount that it may take
fits beside what is spent and what the calls in flight may take. That amount is its prompt,
estimated from its characters, and its token limit. A run stops once a call does not fit and none is
in flight: as far as the estimate holds, it never spends more than the limit.
"""

import datetime
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from mcr_jax import model_specs
from mcr_jax.errors import Stopped, UsageError
from mcr_jax.generate import prices as price_rows
from mcr_jax.generate import services, spending
from mcr_jax.generate.api import Reply, Request, Usage
from mcr_jax.generate.ledger import Ledger
from mcr_jax.generate.prices import Prices

# Measured on the sixteen published cases at hand and our prompts: 0.26 to 0.27 tokens per character
# with a SentencePiece vocabulary of 32,000, 0.21 to 0.22 with the tokenizer of DeepSeek-R1.
TOKENS_PER_CHARACTER = 0.27
_FIELDS = ("dollars", "requests", "tokens")


class Amount(NamedTuple):
    """Dollars, calls and tokens: spent, or in flight at most."""

    dollars: float = 0.0
    requests: int = 0
    tokens: int = 0


def characters(request: Request) -> int:
    """Counts the characters of a prompt."""
    return sum(len(message["content"]) for message in request.messages)


def today() -> datetime.date:
    """Returns the day in UTC, as the ledger stores it."""
    return datetime.datetime.now(datetime.UTC).date()


def require_price(config: ConfigDict, service: str = "") -> None:
    """Checks config.prices, and that config.budget.dollars can be kept at `service`.

    Raises:
      UsageError: the file of config.prices cannot be used, or config.budget.dollars is set and the
        price of the service is unknown.
    """
    rows, tier = price_rows.load(config.prices), _tier(config, service)
    if service and config.budget.dollars and not rows.find(service, today(), tier):
        raise _unpriced(spending.named(service, tier))


def refuse_batches(config: ConfigDict, section: str) -> None:
    """Raises UsageError if config.budget is set and `section` asks for batches."""
    if config[section].batch and any(getattr(config.budget, field) for field in _FIELDS):
        raise UsageError(
            f"config.budget does not limit batches: leave config.{section}.batch out, or the budget"
        )


def is_service(name: str, config: ConfigDict) -> bool:
    """Returns whether the name of a model or judge is that of a service: "KIND:MODEL".

    A kind is one of services.KINDS or a name of config.endpoints.
    """
    return name.partition(":")[0] in (*services.KINDS, *model_specs.endpoints(config))


def _tier(config: ConfigDict, service: str) -> str:
    """Returns the tier of the price of direct calls to a service, by config.endpoints."""
    endpoint = model_specs.endpoints(config).get(service.partition(":")[0])
    return model_specs.price_tier(endpoint.service_tier) if endpoint else ""


def _unpriced(service: str) -> UsageError:
    return UsageError(
        f"config.budget.dollars cannot be kept: the price of {service} is unknown; add it to a "
        "file of config.prices, or set config.budget.tokens instead"
    )


class Budget:
    """Limits of config.budget and the spending of a workdir.

    Attributes:
      prices: shipped rows and those of config.prices.
    """

    def __init__(self, config: ConfigDict, ledger: Ledger, today: Callable = today):
        """Counts what the ledger holds.

        Raises:
          UsageError: the file of config.prices cannot be used.
          McrError: the ledger is damaged.
        """
        self.prices: Prices = price_rows.load(config.prices)
        self.today, self._config = today, config
        self._limits = {f: getattr(config.budget, f) for f in _FIELDS if getattr(config.budget, f)}
        self._spent, self._unpriced = Amount(), ()
        if self._limits:
            total = spending.total(spending.read(ledger), self.prices)
            self._unpriced = total.unpriced
            self._spent = Amount(total.dollars or 0.0, total.requests, total.tokens)
        self._held = Amount()
        self._per_character = TOKENS_PER_CHARACTER

    def of(self, service: str, tier: str = "") -> "Payments":
        """Returns the payments to `service` ("KIND:MODEL").

        Args:
          service: the service.
          tier: "batch" for batches; "" takes that of config.endpoints.

        Raises:
          UsageError: config.budget.dollars is set, and the price of it, or of a service that the
            workdir has paid, is unknown.
        """
        payments = Payments(self, service, tier or _tier(self._config, service))
        if self.in_dollars and self._unpriced:
            raise _unpriced(self._unpriced[0])
        payments.require_price(payments.tier)
        return payments

    @property
    def in_dollars(self) -> bool:
        """True if config.budget limits dollars."""
        return "dollars" in self._limits

    def admits(self, amount: Amount) -> bool:
        """Returns whether `amount` fits beside what is spent and in flight."""
        return not self._exceeded(amount)

    def short(self, amount: Amount) -> list[str]:
        """Returns the limits that `amount` may exceed, such as "config.budget.dollars=2"."""
        limits = {field: self._limits[field] for field in self._exceeded(amount)}
        return [f"config.budget.{field}={limit:g}" for field, limit in limits.items()]

    def hold(self, amount: Amount) -> None:
        """Counts a call that starts."""
        self._held = _sum(self._held, amount)

    def settle(self, held: Amount, paid: Amount) -> None:
        """Replaces what a call might have taken by what it took."""
        left = _sum(self._held, held, sign=-1)
        self._held = left if left.requests else Amount()  # no rounding error of dollars stays
        self._spent = _sum(self._spent, paid)

    def stopped(self, amount: Amount) -> Stopped:
        """Returns the end of a run whose next call may take `amount`."""
        field = self._exceeded(amount)[0]
        spent, most = (_shown(field, getattr(part, field)) for part in (self._spent, amount))
        may = "" if field == "requests" else f", and the next call may take {most}"
        return Stopped(
            f"{spent} of config.budget.{field}={self._limits[field]:g} are spent{may}; every "
            f"answer that came is kept: raise config.budget.{field} and call again to go on"
        )

    def _exceeded(self, amount: Amount) -> list[str]:
        """Returns the fields whose limit `amount` may exceed."""
        after = _sum(_sum(self._spent, self._held), amount)
        return [field for field, limit in self._limits.items() if getattr(after, field) > limit]

    @property
    def limited(self) -> bool:
        """True if config.budget sets a limit."""
        return bool(self._limits)

    def tokens_in(self, request: Request) -> int:
        """Estimates the tokens of a prompt; not fewer per character than any call so far had."""
        return round(characters(request) * self._per_character) + 1

    def observe(self, request: Request, usage: Usage) -> None:
        """Learns from the prompt tokens that a service reported."""
        if usage.prompt and (read := characters(request)):
            self._per_character = max(self._per_character, usage.prompt / read)


class Payments:
    """Payments to one service: `remote.ask` takes them.

    Attributes:
      service: "KIND:MODEL", as rows of the ledger name it.
      tier: tier of the price, "batch" or one of a service; "" is the standard one.
    """

    def __init__(self, budget: Budget, service: str, tier: str = ""):
        self.budget, self.service, self.tier = budget, service, tier

    def most(self, request: Request) -> Amount:
        """Returns the largest amount that a call may take."""
        if not self.budget.limited:
            return Amount()
        usage = Usage(prompt=self.budget.tokens_in(request), output=request.max_tokens)
        return self._amount(usage, self.tier)

    def end(self, request: Request, held: Amount, reply: Reply | None) -> None:
        """Counts a call that ended; `reply` is None if it was free and no row will hold it.

        Raises:
          UsageError: config.budget.dollars is set, and the tier that the reply names has no price.
        """
        if not self.budget.limited:
            return
        if reply is None:
            self.budget.settle(held, Amount())
            return
        tier = self.tier if reply.tier is None else reply.tier
        self.budget.settle(held, self._amount(reply.usage, tier))
        self.budget.observe(request, reply.usage)
        self.require_price(tier)

    def require_price(self, tier: str) -> None:
        """Raises UsageError if config.budget.dollars is set and `tier` has no price."""
        if self.budget.in_dollars and self.cost(Usage(), tier) is None:
            raise _unpriced(spending.named(self.service, tier))

    def cost(self, usage: Usage, tier: str | None = None) -> float | None:
        """Returns the USD of `usage` today, by default in `self.tier`; None if it is unknown."""
        tier = self.tier if tier is None else tier
        price = self.budget.prices.find(self.service, self.budget.today(), tier)
        return price and price.cost(usage, tier)

    def _amount(self, usage: Usage, tier: str) -> Amount:
        return Amount(self.cost(usage, tier) or 0.0, 1, usage.prompt + usage.output)


def _sum(a: Amount, b: Amount, sign: int = 1) -> Amount:
    return Amount(*(x + sign * y for x, y in zip(a, b, strict=True)))


def _shown(field: str, value: float) -> str:
    return spending.dollars(value) if field == "dollars" else f"{value:,} {field}"
