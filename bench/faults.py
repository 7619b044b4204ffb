"""Judging of 2,400 verdicts by a server with failures: missing after each call, and wrong ones.

    python -m bench.faults --share=0.2        # nothing is missing after the second call
    python -m bench.faults --share=0.6        # nothing is missing after the fourth call

`bench.loopback` injects the failures. Every verdict is compared with that of a server without
failures. Waits are scaled down: 5 ms for a second.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from mcr_jax import config as configs
from mcr_jax import synthetic
from mcr_jax.completion import render
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.gemini import Gemini
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.judge.ask import judge
from mcr_jax.workdir import Workdir

from .loopback import Loopback

MODELS, SAMPLES, RECALL, IN_FLIGHT = ("base", "sft"), 10, 2, 64
STAGES = ("diagnosis", "reasons")


def config_of() -> Any:
    """Returns the config of the judge."""
    config = configs.default()
    config.sample.models, config.judge.recall_samples = MODELS, RECALL
    config.judge.name = "gemini"
    return config


def complete(workdir: Workdir, cases: list) -> None:
    """Writes completions of both models, `SAMPLES` per case, a third of them correct."""
    with Ledger(workdir.ledger) as ledger:
        for m, model in enumerate(MODELS):
            rows = {}
            for c, case in enumerate(cases):
                for sample in range(SAMPLES):
                    other = cases[(c + sample // 2 + m) % len(cases)].final_diagnosis
                    name = case.final_diagnosis if sample % 3 == 0 else other
                    trace = " ".join(case.statements[sample % 2 :])
                    row = RowKey(stage="sample", case=case.fingerprint, model=model, sample=sample)
                    rows[row] = render(trace, name)
            ledger.declare(Scope("sample", model), dict.fromkeys(rows, "d"))
            ledger.write_all(
                [Attempt(row=row, digest="d", attempt=1, outcome=Outcome.OK, text=text)]
                for row, text in rows.items()
            )


def verdicts(workdir: Workdir, config: Any) -> dict[RowKey, Any]:
    """Returns every wanted verdict, None where it is missing."""
    judge_name = configs.judge_name(config)
    found: dict[RowKey, Any] = {}
    with Ledger(workdir.ledger, readonly=True) as ledger:
        for model in MODELS:
            for stage in STAGES:
                answers = ledger.answers(Scope(stage, model, judge_name))
                found |= {row: a and a.verdict for row, a in answers.items()}
    return found


def resolve(
    folder: Path, cases: list, share: float, *, calls: int, late: float = 0.8
) -> tuple[dict[RowKey, Any], list[int]]:
    """Judges with failures, up to `calls` times.

    Args:
      folder: the workdir.
      cases: cases to judge, with 24 verdicts each.
      share: share of failing calls.
      calls: largest number of calls of the judging stage.
      late: seconds of a late reply; the timeout is three quarters of it.

    Returns:
      The verdicts, and the number of missing ones after each call until none is missing.
    """
    workdir, config, missing = Workdir(folder), config_of(), []
    complete(workdir, cases)
    with Loopback(faults=share, late=late) as url:
        os.environ.update(GOOGLE_GEMINI_BASE_URL=url, GEMINI_API_KEY="loopback")
        while len(missing) < calls and (not missing or missing[-1]):
            generator = Gemini(
                config.judge.model, timeout=0.75 * late, concurrency=IN_FLIGHT, backoff=0.005
            )
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(McrError):
                judge(workdir, config, cases, generator=generator)
            missing.append(sum(v is None for v in verdicts(workdir, config).values()))
    return verdicts(workdir, config), missing


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--calls", type=int, default=4)
    flags = parser.parse_args()
    cases = synthetic.cases(0, {"test": flags.cases})
    with tempfile.TemporaryDirectory() as folder:
        expected, _ = resolve(Path(folder) / "whole", cases, 0.0, calls=1)
        start = time.monotonic()
        found, missing = resolve(Path(folder) / "faults", cases, flags.share, calls=flags.calls)
        seconds = time.monotonic() - start
    resolved = {row: verdict for row, verdict in found.items() if verdict is not None}
    result = {
        "bench": "faults",
        "verdicts": len(found),
        "share": flags.share,
        "missing_after_each_call": missing,
        "wrong": sum(verdict != expected[row] for row, verdict in resolved.items()),
        "seconds": round(seconds, 1),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
