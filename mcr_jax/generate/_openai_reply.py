"""Replies of chat completions: the JSON of a 200, whatever its form, becomes a typed reply."""

import math
from collections.abc import Mapping
from typing import Any

from mcr_jax.completion import with_thoughts
from mcr_jax.errors import one_line, printable
from mcr_jax.generate.api import Outcome, Reply, Request, Usage, reply_of
from mcr_jax.generate.stops import cut
from mcr_jax.model_specs import price_tier

NO_QUOTA = "insufficient_quota"  # code of an error 429 that no wait solves
_MOST_NATS = 1e9


def shutdown_of(body: Any) -> str:
    """Returns the retirement notice in the JSON of a model; "" where the server does not say."""
    date = _string(_mapping(body).get("shutdown_date"))
    return f"shuts down {one_line(date, 40)}" if date else ""


def read(request: Request, index: int, body: Any, status: str) -> Reply:
    """Turns the body of a 200 into a reply, whatever its form; its error is as the server says."""
    body = _mapping(body)
    usage = _mapping(body.get("usage"))
    tier = _string(body.get("service_tier"))
    known = {
        "model_version": one_line(_string(body.get("model")), 200),
        "tier": price_tier(printable(one_line(tier, 40))) if tier else None,
        "model_status": status,
        "usage": Usage.reported(
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
            _mapping(usage.get("prompt_tokens_details")).get("cached_tokens"),
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
        return reply_of(request, index, Outcome.BLOCKED, error=f"refused: {refusal}", **known)
    if finish == "content_filter":
        return reply_of(request, index, Outcome.BLOCKED, error="answer blocked", **known)
    if finish not in ("stop", "length"):
        error = f"finish reason {finish}"
        return reply_of(request, index, Outcome.MALFORMED, error=error, **known)
    thoughts = _string(message.get("reasoning")) or _string(message.get("reasoning_content"))
    text = cut(content, request.stop)  # a stop string among the thoughts ends no answer
    if request.schema is None:
        text = with_thoughts(thoughts, text)
    if finish == "length":
        outcome, error = Outcome.TRUNCATED, "cut short: the token limit"
        return reply_of(request, index, outcome, text=text, error=error, **known)
    if not content:
        return reply_of(request, index, Outcome.MALFORMED, error="empty answer", **known)
    logprob = _mean_logprob(choice.get("logprobs"))
    return reply_of(request, index, Outcome.OK, text=text, mean_logprob=logprob, **known)


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
    if not values or not all(isinstance(v, int | float) and abs(v) <= _MOST_NATS for v in values):
        return None
    return math.fsum(values) / len(values)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""
