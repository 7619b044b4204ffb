"""Gemini through the google-genai client: one call per answer, with a typed outcome.

The retries of the client are off: `pace.Pacer` does the backoff, and a reply holds the wait that
the service named. Permanent errors (a bad key, an unknown model) stop the run with one line; a
used-up daily quota does, too, with the time of its reset. `GOOGLE_GEMINI_BASE_URL` redirects the
calls and may have a path prefix. It is not part of `identity`: a gateway does not change the model.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mcr_jax.completion import with_thoughts
from mcr_jax.errors import McrError, Stopped, UsageError, one_line
from mcr_jax.generate import (
    _gemini_models,
    connections,
    free_question,
    gemini_access,
    quota,
    secrecy,
)
from mcr_jax.generate.api import Message, Outcome, Reply, Request, Usage, reply_of
from mcr_jax.generate.pace import Fault, Pacer

if TYPE_CHECKING:
    from mcr_jax.generate.gemini_batch import GeminiBatch

API_VERSION = "v1beta"
VERTEX_API_VERSION = "v1beta1"

_TRUNCATED = ("MAX_TOKENS", "CONTINUATION")
_BLOCKED = (
    *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
    *("MODEL_ARMOR", "ESCALATION"),
)
LEVELS = ("minimal", "low", "medium", "high", "xhigh")  # of thinking, from Gemini 3 on
_CACHED_CONFIGS = 64
_TOO_LONG = re.compile(r"token count .*exceeds|too many tokens|request payload size exceeds", re.I)


class Gemini:
    """A `Remote` over `models.generate_content`.

    Gemini is not repeatable, even with a fixed seed: only the ledger keeps answers. From Gemini 3
    on, temperature, top_p and top_k are not sent, because the service deprecates them.

    Attributes:
      identity: "gemini/MODEL" with the settings of sampling and thinking, or their defaults.
      samples: True if temperature, top_p and top_k are sent.
      pacer: rate limit and backoff of all calls.
      most_tokens: largest token limit of one reply, thoughts included.
      model, key, base_url: of every call; no base URL is that of Google.
    """

    most_tokens = 65_536

    def __init__(
        self,
        model: str,
        *,
        timeout: float = 60.0,
        concurrency: int = 8,
        thinking: str = "",
        thoughts: bool = False,
        patience: float = 600.0,
        backoff: float = 1.0,
    ):
        """Checks the settings; the first call creates the client.

        Args:
          model: name of the model, for example "gemini-3.5-flash-lite".
          timeout: seconds after which a call fails.
          concurrency: largest number of calls in flight.
          thinking: a level from Gemini 3 on, a number of tokens for Gemini 2.5, or "" for the
            default of the service.
          thoughts: whether summaries of thoughts are requested and kept before the text, inside
            `<think>`; not for structured output.
          patience: seconds to wait for a service that does not answer.
          backoff: seconds of the first wait.

        Raises:
          UsageError: there is no key, or an argument or the base URL is invalid.
        """
        if not model.strip() or timeout <= 0 or concurrency < 1:
            raise UsageError(
                f"Gemini needs a model, a timeout above 0 and a concurrency of at least 1, not "
                f"{model!r}, {timeout} and {concurrency}"
            )
        self._thinking, self._thoughts = _thinking_of(model, thinking), thoughts
        self.samples = samples(model)
        self._vertex, self.base_url = gemini_access.vertex(), gemini_access.base_url()
        self.key = "" if self._vertex.get("project") else gemini_access.key()
        self.identity = identity(model, thinking, thoughts)
        self.pacer = Pacer(concurrency, patience=patience, backoff=backoff)
        self.model, self._timeout, self._concurrency = model, timeout, concurrency
        self._client: Any = None
        self._configs: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    async def call(self, request: Request, index: int) -> Reply:
        """Makes one call; each index has its own seed.

        Raises:
          McrError: the service refuses, and a retry would not help.
          Stopped: the daily quota is used up.
          ValueError: the conversation does not end with the user's turn.
        """
        if self._client is None:
            self._open()
        system, contents = _contents(request.messages)
        config = self._cached_config(request, index, system)
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.models.generate_content(
                    model=self.model, contents=contents, config=config
                )
        except self._api_error as error:
            return self._refused(request, index, error)
        except TimeoutError:
            return self._failed(request, index, f"Timeout: no reply in {self._timeout:g} s")
        except self._credential_errors as error:
            line = one_line(str(error), 200)
            raise McrError(
                f"Vertex AI: {line}; run `gcloud auth application-default login`, or set "
                "GOOGLE_APPLICATION_CREDENTIALS"
            ) from None
        except self._transport_errors as error:
            line = f"{type(error).__name__}: {error}".rstrip(": ")
            away = Fault.AWAY if isinstance(error, self._connect_errors) else Fault.FAILED
            return self._failed(request, index, line, fault=away)
        except _gemini_models.UNREADABLE as error:
            line = f"unreadable reply: {type(error).__name__}: {error}"
            return self._failed(request, index, line)
        return self.read(request, index, response)

    async def check(self) -> str:
        """Asks for the model, at no cost; see `free_question.Checked`.

        Not on Vertex AI, where a right to make calls may come without that to read models.
        """
        if self._vertex:
            return ""
        self._open()
        try:
            async with asyncio.timeout(min(self._timeout, free_question.TIMEOUT_S)):
                return await _gemini_models.check(self, self._client.models)
        except TimeoutError:
            return free_question.away(self.base_url or "Gemini", "Timeout")
        finally:
            await self.close()

    async def close(self) -> None:
        """Closes the connections; the next call opens new ones in its event loop."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()
            await self._http.aclose()

    def _open(self) -> None:
        from google import genai
        from google.auth.exceptions import GoogleAuthError
        from google.genai import errors, types

        gemini_access.ignore_warnings()
        self._types, self._api_error = types, errors.APIError
        self._credential_errors = GoogleAuthError
        self._transport_errors, self._connect_errors = connections.errors()
        self._http = connections.client(self._concurrency)
        self._client = genai.Client(
            **(self._vertex or {"vertexai": False}),
            api_key=self.key or None,
            http_options=types.HttpOptions(
                base_url=self.base_url,
                api_version=VERTEX_API_VERSION if self._vertex else API_VERSION,
                timeout=max(1, round(self._timeout * 1000)),
                retry_options=types.HttpRetryOptions(attempts=1),
                httpx_async_client=self._http,
            ),
        ).aio

    def batch_wire(self) -> "GeminiBatch":
        """Returns the batches of the service. Raises UsageError on Vertex AI."""
        if self._vertex:
            raise UsageError(
                "no batches on Vertex AI: it reads them from Cloud Storage or BigQuery only; leave "
                f"batch out, or unset {gemini_access.USE_VERTEX} to use the Gemini API"
            )
        from mcr_jax.generate.gemini_batch import GeminiBatch

        return GeminiBatch(self)

    def asked(self, request: Request, index: int) -> dict[str, Any]:
        """Returns contents and config of a call, for a batch."""
        from google.genai import types

        self._types = types
        system, contents = _contents(request.messages)
        return {"contents": contents, "config": self._cached_config(request, index, system)}

    def read(self, request: Request, index: int, response: Any) -> Reply:
        """Turns a response with status 200 into a reply."""
        return secrecy.cleaned(_read(request, index, response, self._thoughts), self.key)

    def refused_in_batch(self, request: Request, index: int, message: str) -> Reply:
        """Returns the reply for a request that failed in a batch."""
        if _TOO_LONG.search(message):
            return reply_of(request, index, Outcome.PROMPT_TOO_LONG, error=self.line(message))
        return self._failed(request, index, message)

    def _cached_config(self, request: Request, index: int, system: str) -> Any:
        """Caches `_config` for requests with the same settings."""
        schema = request.schema
        settings = (request.temperature, request.top_p, request.top_k, request.stop)
        key = (id(schema), *settings, request.max_tokens, request.seed + index, system)
        if key not in self._configs:
            if len(self._configs) >= _CACHED_CONFIGS:
                self._configs.clear()
            # The schema is stored, too: while it lives, no other schema gets its id.
            self._configs[key] = self._config(request, index, system), schema
        return self._configs[key][0]

    def _config(self, request: Request, index: int, system: str) -> Any:
        types, options = self._types, {}
        if system:
            options["system_instruction"] = types.Content(
                role="user", parts=[types.Part(text=system)]
            )
        if request.schema is not None:
            options["response_mime_type"] = "application/json"
            options["response_schema"] = request.schema
        if self.samples:
            options |= {"temperature": request.temperature, "top_p": request.top_p}
            if request.top_k:
                options["top_k"] = request.top_k
        if request.stop:
            options["stop_sequences"] = list(request.stop)
        thinking = dict(self._thinking)
        if self._thoughts and request.schema is None:
            thinking["include_thoughts"] = True
        if thinking:
            options["thinking_config"] = types.ThinkingConfig(**thinking)
        if "automatic_continuation" in types.GenerateContentConfig.model_fields:
            options["automatic_continuation"] = False  # no second, billed call
        return types.GenerateContentConfig(
            seed=request.seed + index, max_output_tokens=request.max_tokens, **options
        )

    def _refused(self, request: Request, index: int, error: Any) -> Reply:
        """Turns a status other than 200 into a reply, or raises to end the run."""
        code, message = error.code, self.line(str(error.message or error.status or "no reason"))
        if code in (400, 413) and _TOO_LONG.search(message):
            return reply_of(request, index, Outcome.PROMPT_TOO_LONG, error=message)
        if 400 <= code < 500 and code not in connections.TRANSIENT:
            gateway = f"{gemini_access.BASE_URL} if it is set"
            hints = {
                400: f"check the key in {gemini_access.key_name()} and the settings",
                401: f"check the key in {gemini_access.key_name()}",
                403: f"check the permissions of the key in {gemini_access.key_name()}",
                404: f"check that the model {self.model} exists, and {gateway}",
            }
            hint = hints.get(code, f"check {gateway}")
            raise McrError(f"Gemini refused the call (HTTP {code}): {message}; {hint}") from None
        if name := quota.of_the_day(error):
            raise Stopped(quota.line(self.line(name))) from None
        return self._failed(
            request,
            index,
            f"HTTP {code}: {message}",
            fault=Fault.BUSY if code in connections.BUSY else Fault.FAILED,
            retry_after=quota.retry_after(error),
        )

    def _failed(self, request: Request, index: int, line: str, **known: Any) -> Reply:
        return reply_of(request, index, Outcome.INFRA_ERROR, error=self.line(line), **known)

    def line(self, text: str) -> str:
        """Returns one short printable line without the key, which an error may repeat."""
        return secrecy.line(text, self.key)


def samples(model: str) -> bool:
    """Returns whether temperature, top_p and top_k are sent to a model."""
    return (_generation(model) or 0) < 3


def _generation(model: str) -> int | None:
    """Returns the major version of a Gemini model, 3 if its name has none; None for other models.

    >>> [_generation(name) for name in ("gemini-2.5-pro", "gemini-flash-latest", "gemma-3-27b-it")]
    [2, 3, None]
    """
    match = re.match(r"(?:models/)?gemini-(\d+)?", model)
    return match and int(match[1] or 3)


def _thinking_of(model: str, thinking: str) -> dict[str, Any]:
    """Returns the fields of thinkingConfig. Raises UsageError if the model does not take them."""
    if not thinking:
        return {}
    generation = _generation(model)
    budget = re.fullmatch(r"-1|\d{1,6}", thinking)
    level = thinking.lower() in LEVELS
    if budget and (generation is None or "gemini-2.5" in model):
        return {"thinking_budget": int(thinking)}
    if level and (generation is None or generation >= 3):
        return {"thinking_level": thinking.upper()}
    takes = f"a level ({', '.join(LEVELS)})"
    if generation is not None and generation < 3:
        takes = "a number of tokens, -1 for no limit" if "2.5" in model else "none"
    raise UsageError(
        f"thinking={thinking!r} in config.judge or config.stitch: {model} takes {takes}; '' is the "
        "service's default"
    )


def identity(model: str, thinking: str, thoughts: bool = False) -> str:
    """Returns `Gemini.identity` of these settings; needs no key."""
    kept = "/thoughts=summaries" if thoughts else ""
    if (_generation(model) or 0) < 3:
        return f"gemini/{model}" + (f"/thinking={thinking.lower()}" if thinking else "") + kept
    level = thinking.lower() or "service default"
    return f"gemini/{model}/sampling=service default/thinking={level}{kept}"


def _contents(messages: Sequence[Message]) -> tuple[str, list[dict[str, Any]]]:
    """Returns the system messages as one text, and the turns in the form of the service."""
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("a request to Gemini ends with the user's turn")
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    turns = [
        {
            "role": "model" if message["role"] == "assistant" else "user",
            "parts": [{"text": message["content"]}],
        }
        for message in messages
        if message["role"] != "system"
    ]
    return system, turns


def _read(request: Request, index: int, response: Any, thoughts: bool) -> Reply:
    """Turns a response with status 200 into a reply, by its finish reason and its parts."""
    counts = response.usage_metadata
    known = {
        "model_version": one_line(response.model_version or "", 200),
        "model_status": _status(getattr(response, "model_status", None)),
        "usage": Usage.reported(
            counts and counts.prompt_token_count,
            ((counts and counts.candidates_token_count) or 0)
            + ((counts and counts.thoughts_token_count) or 0),
            counts and counts.cached_content_token_count,
        ),
    }
    feedback = response.prompt_feedback
    if feedback and feedback.block_reason:
        error = f"prompt blocked: {_name(feedback.block_reason)}"
        return reply_of(request, index, Outcome.BLOCKED, error=error, **known)
    if not response.candidates:
        return reply_of(
            request, index, Outcome.INFRA_ERROR, error="reply without an answer", **known
        )
    candidate = response.candidates[0]
    parts = (candidate.content and candidate.content.parts) or []
    text = "".join(part.text for part in parts if part.text and not part.thought)
    answered = bool(text)
    if thoughts and request.schema is None:
        summary = "\n".join(part.text for part in parts if part.text and part.thought)
        text = with_thoughts(summary, text)
    reason = _name(candidate.finish_reason)
    if reason in _TRUNCATED:
        error = f"cut short: {reason}"
        return reply_of(request, index, Outcome.TRUNCATED, text=text, error=error, **known)
    if reason in _BLOCKED:
        error = f"answer blocked: {reason}"
        return reply_of(request, index, Outcome.BLOCKED, error=error, **known)
    if reason != "STOP":
        error = f"finish reason {reason}"
        return reply_of(request, index, Outcome.MALFORMED, error=error, **known)
    if not answered:
        return reply_of(request, index, Outcome.MALFORMED, error="empty answer", **known)
    return reply_of(request, index, Outcome.OK, text=text, **known)


def _name(reason: Any) -> str:
    return str(getattr(reason, "value", reason))


def _status(status: Any) -> str:
    """Returns the retirement notice for the model in one line; "" without one."""
    if status is None:
        return ""
    retires = f"retires {status.retirement_time:%Y-%m-%d}" if status.retirement_time else ""
    stage = _name(status.model_stage) if status.model_stage else ""
    return one_line("; ".join(filter(None, (stage, retires, status.message or ""))), 500)
