"""Replies of chat completions: the JSON of a 200, whatever its form, becomes a typed reply."""

import math
from collections.abc import Mapping
from typing import Any

from mcr_jax.generate.api import Outcome, Reply, Request, Usage
from mcr_jax.generate.stops import cut


def read(request: Request, index: int, body: Any, status: str) -> Reply:
    """Turns the body of a 200 into a reply, whatever its form."""
    body = _mapping(body)
    usage = _mapping(body.get("usage"))
    known = {
        "model_version": _string(body.get("model")),
        "model_status": status,
        "usage": Usage(
            prompt=_count(usage.get("prompt_tokens")),
            output=_count(usage.get("completion_tokens")),
            cached=_count(_mapping(usage.get("prompt_tokens_details")).get("cached_tokens")),
        ),
    }
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        error = _string(_mapping(body.get("error")).get("message")) or "reply without an answer"
        return reply_of(request, index, Outcome.INFRA_ERROR, error=error, **known)
    choice = _mapping(choices[0])
    message = _mapping(choice.get("message"))
    content, finish = _content(message.get("content")), choice.get("finish_reason")
    if refusal := _string(message.get("refusal")):
        error = f"refused: {refusal}"
        return reply_of(request, index, Outcome.BLOCKED, error=error, **known)
    if finish == "content_filter":
        return reply_of(request, index, Outcome.BLOCKED, error="answer blocked", **known)
    if finish not in ("stop", "length"):
        error = f"finish reason {finish}"
        return reply_of(request, index, Outcome.MALFORMED, error=error, **known)
    thoughts = _string(message.get("reasoning")) or _string(message.get("reasoning_content"))
    text = content if request.schema is not None else _with_thoughts(thoughts, content)
    text = cut(text, request.stop)
    if finish == "length":
        outcome, error = Outcome.TRUNCATED, "cut short: the token limit"
        return reply_of(request, index, outcome, text=text, error=error, **known)
    if not content:
        return reply_of(request, index, Outcome.MALFORMED, error="empty answer", **known)
    logprob = _mean_logprob(choice.get("logprobs"))
    return reply_of(request, index, Outcome.OK, text=text, mean_logprob=logprob, **known)


def _with_thoughts(thoughts: str, content: str) -> str:
    """Returns a completion with the reasoning in front; not closed if the content is missing."""
    if not thoughts.strip():
        return content
    return f"<think>\n{thoughts}\n</think>\n{content}" if content else f"<think>\n{thoughts}"


def reply_of(request: Request, index: int, outcome: Outcome, text: str = "", **known: Any) -> Reply:
    return Reply(key=request.key, index=index, text=text, outcome=outcome, **known)


def _content(content: Any) -> str:
    """Returns the text of a message, which may be a list of parts."""
    if isinstance(content, list):
        return "".join(_string(_mapping(part).get("text")) for part in content)
    return _string(content)


def _mean_logprob(logprobs: Any) -> float | None:
    """Returns the mean log-probability in nats per token; None where the server gives none."""
    tokens = _mapping(logprobs).get("content")
    if not isinstance(tokens, list):
        return None
    values = [_mapping(token).get("logprob") for token in tokens]
    if not values or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        return None
    return math.fsum(values) / len(values)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
