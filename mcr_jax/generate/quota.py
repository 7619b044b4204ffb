"""Daily quotas of Gemini: their names in errors, and the time of their reset."""

import datetime
import zoneinfo
from collections.abc import Iterable, Mapping
from typing import Any

_RESET_ZONE = "America/Los_Angeles"  # daily quotas are reset at midnight there


def of_the_day(details: Iterable[Mapping[str, Any]]) -> str:
    """Returns the name of the daily quota that is used up by an error's details; "" if none is."""
    for detail in details:
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
