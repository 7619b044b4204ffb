"""The one contract for obtaining text from any model: Request in, Reply out, Outcome typed.

The JAX engine and the offline judge are `Generator`s, a service behind a network is a `Remote`;
sampling, stitching and judging are clients. An error is an `Outcome`, never text, `False` or 0.
"""

import dataclasses
import enum
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from mcr_jax.generate.pace import Fault, Pacer


class Outcome(enum.StrEnum):
    """Outcome of an attempt. Only OK and TRUNCATED carry text that a model wrote."""

    OK = "OK"
    TRUNCATED = "TRUNCATED"  # the token limit was reached
    BLOCKED = "BLOCKED"  # the service refused prompt or answer
    MALFORMED = "MALFORMED"  # a reply came, but not of the asked form
    INFRA_ERROR = "INFRA_ERROR"  # nothing usable came: network, quota, server
    PROMPT_TOO_LONG = "prompt_too_long"  # the prompt does not fit the engine; never cut in silence

    @property
    def settled(self) -> bool:
        """Whether asking again is pointless: all but INFRA_ERROR."""
        return self is not Outcome.INFRA_ERROR


Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Request to a generator.

    Attributes:
      key: names the request within a run; for samples, the case fingerprint.
      messages: the conversation so far, ending with the user's turn.
      n: how many answers are wanted; their indices are 0 … n-1.
      temperature: 0 is greedy.
      top_k: how many of the likeliest tokens are drawn from; 0 is all.
      top_p: nucleus mass kept, in (0, 1].
      max_tokens: limit of new tokens per answer.
      stop: texts that end an answer; it keeps the first of them that it comes to.
      schema: JSON schema the answer must follow, or None for free text.
      seed: with `key` and the index, fixes a sample on generators that are repeatable.
      indices: the answers still wanted, of 0 … n-1; None means all.
      fields: what the messages were rendered from; a rule-based generator reads these.
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
        """The sample indices to answer."""
        return tuple(range(self.n)) if self.indices is None else self.indices

    def digest(self, identity: str) -> str:
        """SHA-256 (hex) of all that decides an answer, by the generator called `identity`.

        `n` and `indices` are left out: which samples are wanted does not change any of them. So
        are `top_k` and `stop` where they do nothing: ledgers from before they existed stay valid.
        """
        return _sha256({"key": self.key, **self._decisive(identity)})

    def question(self, identity: str, draw: tuple[int, int] = (0, 0)) -> str:
        """SHA-256 (hex) of what is asked, whatever row it is asked for: `digest` without the key.

        Requests that ask the same may share one answer, where answers are not random draws.

        Args:
          identity: of the generator.
          draw: index of the answer and of the repetition; other draws are other questions.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens an attempt cost. `output` counts thoughts too; `prompt` includes `cached`."""

    prompt: int = 0
    output: int = 0
    cached: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer, or the typed absence of one.

    Attributes:
      key: the request's.
      index: which of the request's n answers this is.
      text: what the model said; empty unless the outcome is OK or TRUNCATED.
      outcome: how the attempt ended.
      usage: tokens spent.
      mean_logprob: nats per token of the answer as kept, its end token included, under the model
        itself, without temperature and filters; None where the generator does not tell.
      model_version: what the service says it ran.
      model_status: what the service says of that model's retirement.
      error: one line for people when the outcome is not OK.
      fault: why a service gave no answer, where the outcome is INFRA_ERROR.
      retry_after: seconds the service asked to wait, or None.
    """

    key: str
    index: int
    text: str
    outcome: Outcome
    usage: Usage = Usage()
    mean_logprob: float | None = None
    model_version: str = ""
    model_status: str = ""
    error: str = ""
    fault: Fault = Fault.FAILED
    retry_after: float | None = None


class Generator(Protocol):
    """Whatever answers requests on this machine, many at a time.

    Attributes:
      identity: names model, weights and every setting that changes answers; part of the digest.
    """

    identity: str

    def generate(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Yields one reply for every wanted (request, index), as they finish, in any order."""
        ...


@runtime_checkable
class Remote(Protocol):
    """A service that is asked over a network, one answer per call, many calls in flight.

    Attributes:
      identity: as of a `Generator`.
      pacer: decides when a call may start; it outlives single runs.
      most_tokens: the largest `max_tokens` that the service takes.
    """

    identity: str
    pacer: Pacer
    most_tokens: int

    async def call(self, request: Request, index: int) -> Reply:
        """Asks once for answer `index`.

        Raises:
          McrError: the service refuses in a way that no retry changes.
          Stopped: it will answer at a later time that it names.
        """
        ...

    async def close(self) -> None:
        """Closes the connections of the running event loop."""
        ...
