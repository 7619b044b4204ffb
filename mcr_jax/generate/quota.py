"""Quotas of a day: how Gemini's errors name them, and when they are reset."""

import datetime
import zoneinfo
from collections.abc import Iterable, Mapping
from typing import Any

_ZONE = "America/Los_Angeles"  # at its midnight daily quotas are reset


def of_the_day(details: Iterable[Mapping[str, Any]]) -> str:
    """The name of the daily quota that an error's details say is used up; "" if none is."""
    for detail in details:
        violations = detail.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            name = str(violation.get("quotaId", "")) if isinstance(violation, dict) else ""
            if "perday" in name.lower():
                return name
    return ""


def line(name: str, now: datetime.datetime | None = None) -> str:
    """One line about a daily quota that is used up, with the time of its reset here and there.

    Args:
      name: of the quota.
      now: with its time zone; None is the present.
    """
    used_up = f"the daily quota {name} is used up; every answer that came is kept. Call again after"
    try:
        there = (now or datetime.datetime.now(datetime.UTC)).astimezone(zoneinfo.ZoneInfo(_ZONE))
    except zoneinfo.ZoneInfoNotFoundError:  # no time zones on this machine
        return f"{used_up} midnight in Los Angeles"
    day = there.date() + datetime.timedelta(days=1)
    reset = datetime.datetime.combine(day, datetime.time(), there.tzinfo)
    here = reset.astimezone(now.tzinfo if now else None)
    return f"{used_up} {here:%Y-%m-%d %H:%M %Z} ({reset:%Y-%m-%d %H:%M} in Los Angeles)"
