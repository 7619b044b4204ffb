"""Contract for obtaining text from any model: a Request in, a Reply with a typed Outcome out.

The JAX engine and the offline judge are `Generator`s, a service on the network is a `Remote`.
Sampling, stitching and judging are clients. An error is an `Outcome`, never text, `False` or 0.
"""

import dataclasses
import enum
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from mcr_jax.generate.pace import Fault, Pacer


class Outcome(enum.StrEnum):
    """Outcome of an attempt. Only OK and TRUNCATED carry text that a model wrote."""

    OK = "OK"
    TRUNCATED = "TRUNCATED"  # the token limit was reached
    BLOCKED = "BLOCKED"  # the service refused prompt or answer
    MALFORMED = "MALFORMED"  # the reply does not have the requested form
    INFRA_ERROR = "INFRA_ERROR"  # no usable reply: network, quota, server
    PROMPT_TOO_LONG = "prompt_too_long"  # the prompt does not fit; it is never truncated

    @property
    def settled(self) -> bool:
        """True if a retry is pointless: for all outcomes but INFRA_ERROR."""
        return self is not Outcome.INFRA_ERROR


Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Request to a generator.

    Attributes:
      key: unique name of the request within a run; for samples, the case fingerprint.
      messages: conversation that ends with the user's turn.
      n: number of answers; their indices are 0 … n-1.
      temperature: sampling temperature; 0 is greedy.
      top_k: samples from the k most likely tokens; 0 disables top-k.
      top_p: nucleus mass, in (0, 1].
      max_tokens: limit of new tokens per answer.
      stop: stop strings; an answer ends after the first and keeps it.
      schema: JSON schema of the answer, or None for free text.
      seed: determines a sample, with `key` and the index, on repeatable generators.
      indices: indices of the answers that are still wanted; None means all.
      fields: values that the messages were rendered from, read by rule-based generators.
    """

    key: str
    messages: tuple[Message, ...]
    n: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    schema: Mapping[str, object] | None = None
    seed: int = 0
    indices: tuple[int, ...] | None = None
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def wanted(self) -> tuple[int, ...]:
        """Indices of the answers to generate."""
        return tuple(range(self.n)) if self.indices is None else self.indices

    def digest(self, identity: str) -> str:
        """SHA-256 (hex) of everything that determines the answers of the generator `identity`.

        Without `n` and `indices`, which change no answer, and without `top_k` and `stop` where they
        are off: ledgers from before these settings existed stay valid.
        """
        return _sha256({"key": self.key, **self._decisive(identity)})

    def question(self, identity: str, draw: tuple[int, int] = (0, 0)) -> str:
        """SHA-256 (hex) of the question, independent of the row: `digest` without the key.

        Equal questions share one answer if answers are not random draws.

        Args:
          identity: identity of the generator.
          draw: index of the answer and of the repetition; each draw is a question of its own.
        """
        return _sha256({"draw": draw, **self._decisive(identity)})

    def _decisive(self, identity: str) -> dict[str, object]:
        decisive = {
            "identity": identity,
            "messages": [dict(m) for m in self.messages],
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "schema": self.schema,
            "seed": self.seed,
        }
        if self.top_k:
            decisive["top_k"] = self.top_k
        if self.stop:
            decisive["stop"] = sorted(self.stop)
        return decisive


def _sha256(plain: Mapping[str, object]) -> str:
    canonical = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


_MOST_TOKENS = 10**9  # of one call


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of an attempt. `output` includes thoughts; `prompt` includes `cached`."""

    prompt: int = 0
    output: int = 0
    cached: int = 0

    @classmethod
    def reported(cls, prompt: object, output: object, cached: object) -> "Usage":
        """Returns the counts of a service; 0 for what is not a possible count."""
        counts = {"prompt": prompt, "output": output, "cached": cached}
        possible = {k: c for k, c in counts.items() if type(c) is int and 0 <= c <= _MOST_TOKENS}
        return cls(**possible)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer, or the reason why there is none.

    Attributes:
      key: key of the request.
      index: index of the answer among the n of the request.
      text: text of the model; empty unless the outcome is OK or TRUNCATED.
      outcome: result of the attempt.
      usage: tokens spent.
      mean_logprob: nats per kept token, end token included, under the model without temperature and
        filters; None if the generator does not report it.
      model_version: version that the service reported.
      model_status: retirement notice of the service for this model.
      tier: tier that the service reports, "" for the standard price; None if it reports none.
      error: one line for people if the outcome is not OK.
      fault: cause of the failure if the outcome is INFRA_ERROR.
      retry_after: seconds that the service asks to wait, or None.
    """

    key: str
    index: int
    text: str
    outcome: Outcome
    usage: Usage = Usage()
    mean_logprob: float | None = None
    model_version: str = ""
    model_status: str = ""
    tier: str | None = None
    error: str = ""
    fault: Fault = Fault.FAILED
    retry_after: float | None = None


def reply_of(request: Request, index: int, outcome: Outcome, text: str = "", **known: Any) -> Reply:
    """Returns the reply to one of the answers of a request; `known` are further fields."""
    return Reply(key=request.key, index=index, text=text, outcome=outcome, **known)


class Generator(Protocol):
    """Source of answers on this machine that takes many requests at a time.

    Attributes:
      identity: name of model, weights and every setting that changes answers; part of the digest.
    """

    identity: str

    def generate(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Yields one reply for every wanted (request, index) as it finishes, in any order."""
        ...


@runtime_checkable
class Remote(Protocol):
    """Service on the network that gives one answer per call, with many calls in flight.

    Attributes:
      identity: see `Generator`.
      pacer: rate limit and backoff, kept between runs.
      most_tokens: largest `max_tokens` of the service.
    """

    identity: str
    pacer: Pacer
    most_tokens: int

    async def call(self, request: Request, index: int) -> Reply:
        """Makes one call for answer `index`.

        Raises:
          McrError: the service refuses, and a retry would not help.
          Stopped: the service will answer at a later time, which it names.
        """
        ...

    async def close(self) -> None:
        """Closes the connections of the running event loop."""
        ...
