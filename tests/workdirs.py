"""Scored workdirs, made by the real scoring from a real ledger."""

from mcr_jax import completion, config
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.score import results
from mcr_jax.workdir import Workdir

JUDGE = "offline"


def scored(path, models, *, data=None, judge=None, sample=None, resamples=300):
    """Returns a scored workdir.

    Args:
      path: of the folder.
      models: model to case to whether each sample is right; None has no verdict.
      data: of the manifest.
      judge: of the manifest, such as its prompts.
      sample: of the manifest, such as the prompt's digest.
      resamples: of the config.
    """
    workdir = Workdir(path)
    c = config.default()
    c.sample.models = tuple(name if ":" in name else f"{name}=file:x" for name in models)
    c.sample.n = max(len(rights) for cases in models.values() for rights in cases.values())
    c.judge.recall_samples, c.score.resamples = 1, resamples
    attempts = []
    with Ledger(workdir.ledger) as ledger:
        for model, cases in models.items():
            rows = []
            for case, rights in cases.items():
                for number, right in enumerate(rights):
                    at = {"case": case, "model": model, "sample": number}
                    text = completion.render("It hums.", "Sable gout")
                    rows.append((RowKey(stage="sample", **at), {"text": text}))
                    if right is not None:
                        row = RowKey(stage="diagnosis", judge=JUDGE, **at)
                        rows.append((row, {"verdict": {"same": bool(right)}}))
                    if number == 0:
                        found = [bool(right), True]
                        verdict = {"found": found, "verified": found, "quotes": [[], []]}
                        row = RowKey(stage="reasons", judge=JUDGE, **at)
                        rows.append((row, {"verdict": verdict}))
            for stage in ("sample", "diagnosis", "reasons"):
                scope = Scope(stage, model, "" if stage == "sample" else JUDGE)
                ledger.declare(scope, {row: "d" for row, _ in rows if row.stage == stage})
            attempts += [
                Attempt(row=row, digest="d", attempt=1, outcome=Outcome.OK, **fields)
                for row, fields in rows
            ]
        ledger.write_all([attempt] for attempt in attempts)
    workdir.note(
        "data", {"dataset": "fictional", "synthetic": True, "split": "test", **(data or {})}
    )
    workdir.note("judge", {"name": JUDGE, "identity": "rules", **(judge or {})})
    workdir.note("sample", sample or {"prompt": "p" * 64})
    results.score(workdir, config.check(c, "test"))
    return workdir


def cases(rights):
    """Names cases by number: one sample each where `rights` is a flat list."""
    return {
        f"{number:064x}": right if isinstance(right, list) else [right]
        for number, right in enumerate(rights)
    }
