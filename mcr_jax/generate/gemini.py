"""Gemini through the google-genai client: one call per wanted answer, every ending typed.

The client's own retries are off: `driver.Retry` waits, and a reply carries how long the service
asked for. What can never work (a bad key, an unknown model) stops the run with one line. Where
calls go (`GOOGLE_GEMINI_BASE_URL` redirects them, a path prefix is kept) is not part of `identity`:
a gateway is a way to the model, not another model.
"""

import email.utils
import importlib
import importlib.util
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate.api import Message, Outcome, Reply, Request, Usage

API_VERSION = "v1beta"
KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")  # the first that is set is the one used
BASE_URL = "GOOGLE_GEMINI_BASE_URL"

_TRUNCATED = ("MAX_TOKENS", "CONTINUATION")
_BLOCKED = (
    *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
    *("MODEL_ARMOR", "ESCALATION"),
)
_PASSING = (408, 409, 425, 429, 499)  # the 4xx that may work another time
_TOO_LONG = re.compile(r"token count .*exceeds|too many tokens|request payload size exceeds", re.I)
_UNREACHABLE = 40  # so many calls in a row without any reply end the run


class Gemini:
    """A `Generator` over `models.generateContent`.

    A fixed seed does not make Gemini repeatable; answers are kept by the ledger, not by the seed.

    Attributes:
      identity: "gemini/MODEL", and the thinking budget if one is set.
      concurrency: calls under way at once.
    """

    def __init__(
        self,
        model: str,
        *,
        timeout: float = 60.0,
        concurrency: int = 8,
        thinking_budget: int | None = None,
    ):
        """Makes the client; nothing is sent yet.

        Args:
          model: as the service names it, for example "gemini-3.5-flash-lite".
          timeout: seconds without a byte from the service after which a call has failed.
          concurrency: calls under way at once.
          thinking_budget: tokens of thought allowed, 0 for none; None is the service's default.

        Raises:
          UsageError: there is no key, or an argument or the base URL cannot be used.
        """
        if not model.strip() or timeout <= 0 or concurrency < 1:
            raise UsageError(
                f"Gemini needs a model, a timeout above 0 and a concurrency of at least 1, not "
                f"{model!r}, {timeout} and {concurrency}"
            )
        self._key, base_url = _key(), _base_url()
        from google import genai
        from google.genai import errors, types

        self._types, self._api_error = types, errors.APIError
        self._transport_errors = _transport_errors()
        self._client = genai.Client(
            vertexai=False,
            api_key=self._key,
            http_options=types.HttpOptions(
                base_url=base_url,
                api_version=API_VERSION,
                timeout=max(1, round(timeout * 1000)),
                retry_options=types.HttpRetryOptions(attempts=1),
            ),
        )
        thinking = "" if thinking_budget is None else f"/thinking={thinking_budget}"
        self.identity = f"gemini/{model}{thinking}"
        self.concurrency = concurrency
        self._model, self._timeout, self._thinking_budget = model, timeout, thinking_budget
        self._unanswered, self._lock = 0, threading.Lock()

    def generate(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Yields one reply for every wanted (request, index), each from a call of its own.

        Raises:
          McrError: the service refuses in a way that no retry changes, or cannot be reached at all.
        """
        for request in requests:
            for index in request.wanted:
                yield self._answer(request, index)

    def _answer(self, request: Request, index: int) -> Reply:
        system, contents = _contents(request.messages)
        config = self._config(request, index, system)
        try:
            response = self._client.models.generate_content(
                model=self._model, contents=contents, config=config
            )
        except self._api_error as error:
            self._reached()
            return self._refused(request, index, error)
        except self._transport_errors as error:
            return self._unreached(request, index, error)
        # A body that is no JSON object, or one of other types: the client lets these through.
        except (ValueError, TypeError, AttributeError) as error:
            self._reached()
            problem = self._line(f"unreadable reply: {type(error).__name__}: {error}")
            return _reply(request, index, Outcome.INFRA_ERROR, error=problem)
        self._reached()
        return _read(request, index, response)

    def _config(self, request: Request, index: int, system: str) -> Any:
        types, options = self._types, {}
        if system:
            options["system_instruction"] = types.Content(
                role="user", parts=[types.Part(text=system)]
            )
        if request.schema is not None:
            options["response_mime_type"] = "application/json"
            options["response_schema"] = request.schema
        if request.top_k:
            options["top_k"] = request.top_k
        if request.stop:
            options["stop_sequences"] = list(request.stop)
        if self._thinking_budget is not None:
            options["thinking_config"] = types.ThinkingConfig(thinking_budget=self._thinking_budget)
        if "automatic_continuation" in types.GenerateContentConfig.model_fields:
            options["automatic_continuation"] = False  # it would be a second, billed call
        return types.GenerateContentConfig(
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed + index,
            max_output_tokens=request.max_tokens,
            **options,
        )

    def _refused(self, request: Request, index: int, error: Any) -> Reply:
        """A status other than 200: an outcome, or the end of the run."""
        code, message = error.code, self._line(str(error.message or error.status or "no reason"))
        if code in (400, 413) and _TOO_LONG.search(message):
            return _reply(request, index, Outcome.PROMPT_TOO_LONG, error=message)
        if 400 <= code < 500 and code not in _PASSING:
            hints = {
                400: f"check the key in {_key_name()} and the settings",
                401: f"check the key in {_key_name()}",
                403: f"check what the key in {_key_name()} may do",
                404: f"check that the model {self._model} exists, and {BASE_URL} if it is set",
            }
            hint = hints.get(code, f"check {BASE_URL} if it is set")
            raise McrError(f"Gemini refused the call (HTTP {code}): {message}; {hint}") from None
        return _reply(
            request,
            index,
            Outcome.INFRA_ERROR,
            error=f"HTTP {code}: {message}",
            retry_after=_retry_after(error),
        )

    def _unreached(self, request: Request, index: int, error: Exception) -> Reply:
        line = self._line(f"{type(error).__name__}: {error}".rstrip(": "))
        with self._lock:
            self._unanswered += 1
            unanswered = self._unanswered
        if unanswered >= _UNREACHABLE:
            raise McrError(
                f"Gemini cannot be reached, {unanswered} calls in a row failed ({line}); check the "
                f"network, and {BASE_URL} if it is set, then run the command again to go on"
            ) from None
        return _reply(request, index, Outcome.INFRA_ERROR, error=line)

    def _reached(self) -> None:
        with self._lock:
            self._unanswered = 0

    def _line(self, text: str) -> str:
        """One short line in which the key does not stand, whoever repeated it."""
        line = " ".join(text.replace(self._key, "[key]").split())
        return line if len(line) <= 300 else line[:299] + "…"


def _key_name() -> str:
    return next((name for name in KEYS if os.environ.get(name, "").strip()), KEYS[0])


def _key() -> str:
    key = os.environ.get(_key_name(), "").strip()
    if not key:
        raise UsageError(
            f"no key for Gemini: set {' or '.join(KEYS)}, or name another than gemini in the config"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(
            f"{_key_name()} is no key: it holds white space or characters beyond ASCII"
        )
    return key


def _base_url() -> str | None:
    url = os.environ.get(BASE_URL, "").strip()
    if url and not re.match(r"https?://[^/\s]+", url):
        raise UsageError(f"{BASE_URL} is no URL that begins with http:// or https:// and a host")
    return url or None


def _transport_errors() -> tuple[type[Exception], ...]:
    # Versions of the client use one or the other; neither's errors are those of the client.
    found = [name for name in ("httpx2", "httpx") if importlib.util.find_spec(name)]
    return tuple(importlib.import_module(name).HTTPError for name in found)


def _contents(messages: Sequence[Message]) -> tuple[str, list[dict[str, Any]]]:
    """The system messages as one text, and the turns in the service's form."""
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


def _read(request: Request, index: int, response: Any) -> Reply:
    """A 200: what its finish reason, block reason and parts amount to."""
    counts = response.usage_metadata
    known = {
        "model_version": response.model_version or "",
        "usage": Usage(
            prompt=(counts and counts.prompt_token_count) or 0,
            output=((counts and counts.candidates_token_count) or 0)
            + ((counts and counts.thoughts_token_count) or 0),
            cached=(counts and counts.cached_content_token_count) or 0,
        ),
    }
    feedback = response.prompt_feedback
    if feedback and feedback.block_reason:
        error = f"prompt blocked: {_name(feedback.block_reason)}"
        return _reply(request, index, Outcome.BLOCKED, error=error, **known)
    if not response.candidates:
        return _reply(request, index, Outcome.INFRA_ERROR, error="reply without an answer", **known)
    candidate = response.candidates[0]
    parts = (candidate.content and candidate.content.parts) or []
    text = "".join(part.text for part in parts if part.text and not part.thought)
    reason = _name(candidate.finish_reason)
    if reason in _TRUNCATED:
        error = f"cut short: {reason}"
        return _reply(request, index, Outcome.TRUNCATED, text=text, error=error, **known)
    if reason in _BLOCKED:
        error = f"answer blocked: {reason}"
        return _reply(request, index, Outcome.BLOCKED, error=error, **known)
    if reason != "STOP":
        error = f"finish reason {reason}"
        return _reply(request, index, Outcome.MALFORMED, error=error, **known)
    if not text:
        return _reply(request, index, Outcome.MALFORMED, error="empty answer", **known)
    return _reply(request, index, Outcome.OK, text=text, **known)


def _reply(request: Request, index: int, outcome: Outcome, text: str = "", **known: Any) -> Reply:
    return Reply(key=request.key, index=index, text=text, outcome=outcome, **known)


def _name(reason: Any) -> str:
    return str(getattr(reason, "value", reason))


def _retry_after(error: Any) -> float | None:
    """Seconds the service asks to wait, in its Retry-After header or its RetryInfo."""
    headers = getattr(error.response, "headers", None) or {}
    header = str(headers.get("retry-after", "")).strip()
    asked = [_seconds(header), *(_seconds(delay) for delay in _retry_delays(error.details))]
    return max((seconds for seconds in asked if seconds is not None), default=None)


def _seconds(wait: str) -> float | None:
    """ "7", "7s", "1.5s" or an HTTP date as seconds from now; None for anything else."""
    if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)s?", wait):
        return float(match[1])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(wait).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _retry_delays(body: Any) -> list[str]:
    """Every `retryDelay` of an error's details; the body may be of any shape."""
    error = body.get("error", body) if isinstance(body, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    return [
        str(detail["retryDelay"])
        for detail in (details if isinstance(details, list) else ())
        if isinstance(detail, dict) and "retryDelay" in detail
    ]
