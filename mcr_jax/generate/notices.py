"""Notices about a model behind a network: its retirement, and another model under its name."""

import datetime
import re
from collections.abc import Iterable

from mcr_jax.errors import printable

SOON_DAYS = 90  # a shutdown nearer than this is a warning
_DAY = re.compile(r"\b20\d\d-\d\d-\d\d\b")
# A dated or numbered snapshot or a revision after the name: -2024-07-18, -001, -preview-09-2025,
# or @main of `transformers serve`.
_SNAPSHOT = re.compile(r"(?:[-@:](?:preview|exp|latest))?(?:[-@:][\d-]+|@[\w.]+)?")


def shutdown(status: str) -> datetime.date | None:
    """Returns the first date in a service's retirement notice; None without one."""
    for found in _DAY.findall(status):
        try:
            return datetime.date.fromisoformat(found)
        except ValueError:
            continue
    return None


def warning(model: str, status: str, today: datetime.date) -> str:
    """Returns a line if `model` shuts down within SOON_DAYS or has shut down, else "".

    Args:
      model: name for people.
      status: `Attempt.model_status`.
      today: the day to count from.
    """
    date = shutdown(status)
    if date is None or (days := (date - today).days) >= SOON_DAYS:
        return ""
    if days < 0:
        when = f"was to shut down on {date}, {-days} days ago: its name may be another model's now"
    else:
        when = f"shuts down on {date}, in {days} days: no number of it can be repeated then"
    return f"warning: {model} {when}"


def is_snapshot(asked: str, observed: str) -> bool:
    """Returns whether a service that reports `observed` can have answered with `asked`.

    True for the same name, with or without a folder or a date, and where nothing is reported.
    """
    asked, observed = (name.rstrip("/").rpartition("/")[2].lower() for name in (asked, observed))
    if not observed or not asked:
        return True
    rest = observed.removeprefix(asked)
    return len(rest) < len(observed) and bool(_SNAPSHOT.fullmatch(rest))


def lines(
    name: str, model: str, reported: Iterable[tuple[str, str]], today: datetime.date
) -> list[str]:
    """Returns the lines to print about a model, each once.

    Args:
      name: for people.
      model: asked for at the service.
      reported: model_version and model_status of its attempts.
      today: the day to count from.
    """
    reported, told = set(reported), []
    for status in sorted({status for _, status in reported if status}):
        told.append(f"the service says of {name}: {printable(status)}")
        told += filter(None, [warning(name, status, today)])
    others = sorted({version for version, _ in reported if not is_snapshot(model, version)})
    if others:
        listed = ", ".join(map(printable, others))
        told.append(f"{name} was asked for {model}, and the service reports {listed}")
    return told
