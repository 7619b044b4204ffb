"""Errors of Gemini: the daily quota that is used up, the time of its reset, and the wait."""

import datetime
import zoneinfo
from typing import Any

from mcr_jax.generate import connections

_RESET_ZONE = "America/Los_Angeles"  # daily quotas are reset at midnight there


def of_the_day(error: Any) -> str:
    """Returns the name of the daily quota that is used up by an `APIError`; "" if none is."""
    for detail in _details(error.details) if error.code == 429 else ():
        violations = detail.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            name = str(violation.get("quotaId", "")) if isinstance(violation, dict) else ""
            if "perday" in name.lower():
                return name
    return ""


def line(name: str, now: datetime.datetime | None = None) -> str:
    """Returns one line about a used-up daily quota, with the local and the remote reset time.

    Args:
      name: name of the quota.
      now: time with its time zone; None takes the present.
    """
    used_up = f"the daily quota {name} is used up; every answer that came is kept. Call again after"
    try:
        zone = zoneinfo.ZoneInfo(_RESET_ZONE)
    except zoneinfo.ZoneInfoNotFoundError:  # no time zones on this machine
        return f"{used_up} midnight in Los Angeles"
    day = (now or datetime.datetime.now(datetime.UTC)).astimezone(zone).date()
    reset = datetime.datetime.combine(day + datetime.timedelta(days=1), datetime.time(), zone)
    here = reset.astimezone(now.tzinfo if now else None)
    return f"{used_up} {here:%Y-%m-%d %H:%M %Z} ({reset:%Y-%m-%d %H:%M} in Los Angeles)"


def retry_after(error: Any) -> float | None:
    """Returns the seconds to wait by the Retry-After header and RetryInfo; None without either."""
    headers = getattr(error.response, "headers", None) or {}
    header = str(headers.get("retry-after", "")).strip()
    delays = (str(d["retryDelay"]) for d in _details(error.details) if "retryDelay" in d)
    waits = map(connections.seconds, (header, *delays))
    return max((seconds for seconds in waits if seconds is not None), default=None)


def _details(body: Any) -> list[dict[str, Any]]:
    """Returns the details of an error that are JSON objects; the body may have any form."""
    error = body.get("error", body) if isinstance(body, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    return [d for d in (details if isinstance(details, list) else ()) if isinstance(d, dict)]
