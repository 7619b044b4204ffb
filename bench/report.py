"""Seconds and memory of `mcr score`, `mcr verify` and `mcr report` at the benchmark's size.

    python -m bench.report                     # 897 cases x 10 samples x 2 models, 3 kB traces
    python -m bench.report --cases=20          # a quick check that it works
    python -m bench.report --workdir=DIR       # keeps the ledger for the next call

Every sample is judged for recall, with several quotes per statement, some of them not in the trace:
the largest input of these commands. Each command runs in a separate process, and its whole time and
peak memory count, imports included. All texts are fictional.
"""

import argparse
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mcr_jax import completion, prompts, synthetic
from mcr_jax import config as configs
from mcr_jax.cases import Case
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.generate.api import Outcome, Request
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.judges import diagnosis, reasons
from mcr_jax.workdir import Workdir

MODELS, SAMPLES, TRACE_CHARACTERS = ("base", "sft"), 10, 3000
LIMITS_S = {"score": 6.0, "verify": 6.0, "report": 15.0}  # by command, on two cores
MEMORY_MB = 600.0
JUDGE = "offline"
PARSE = {"diagnosis": diagnosis.parse, "reasons": reasons.parse}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=897)
    parser.add_argument("--workdir", help="folder of the ledger; default: a temporary folder")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(flags.workdir or folder) / f"{flags.cases}"
        complete = workdir / "complete"
        if not complete.exists():
            make(workdir, flags.cases)
            complete.touch()
        shape = f"{flags.cases} cases x {SAMPLES} samples x {len(MODELS)} models"
        for command, limit in LIMITS_S.items():
            seconds, busy, peak = measured(command, workdir)
            figures = {"bench": f"report/{command}", "seconds": round(seconds, 2), "limit": limit}
            figures |= {
                "cpu_seconds": round(busy, 2),
                "peak_mb": round(peak),
                "limit_mb": MEMORY_MB,
                "shape": shape,
            }
            device = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"
            print(json.dumps(figures | {"device": device}), flush=True)


def measured(command: str, workdir: Path) -> tuple[float, float, float]:
    """Runs one `mcr` command; returns its seconds, CPU seconds and peak megabytes."""
    argv = [sys.executable, "-m", "mcr_jax", command, f"--workdir={workdir}"]
    began = time.perf_counter()
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"mcr {command} failed")
    seconds = time.perf_counter() - began
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def make(workdir: Path, cases: int) -> None:
    """Fills a workdir with a dataset of fictional cases, completions and all verdicts."""
    sizes = {"train": 1, "val": 0, "test": cases}
    fields = {f"synthetic.{split}": size for split, size in sizes.items()}
    fields |= {"sample.n": SAMPLES, "judge.recall_samples": SAMPLES, "data.data_dir": "workdir"}
    build = [sys.executable, "-m", "mcr_jax", "build", "--config=demo"]
    build += [f"--config.{field}={value}" for field, value in fields.items()]
    subprocess.run([*build, f"--workdir={workdir}"], check=True, stdout=subprocess.DEVNULL)
    tests = [c for c in synthetic.cases(0, sizes) if c.split == "test"]
    sentences = [s for case in tests[:100] for s in case.case_prompt.split(". ")]
    with Ledger(workdir / "ledger.sqlite") as ledger:
        for model in MODELS:
            rows = [row for case in tests for row in _rows(case, model, sentences)]
            for stage in ("sample", *PARSE):
                scope = Scope(stage, model, JUDGE if stage in PARSE else "")
                wanted = {a.row: a.digest for a in rows if a.row.stage == stage}
                ledger.declare(scope, wanted)
            ledger.write_all([row] for row in rows)
    config = configs.load(workdir / "config.json")
    Experiment(config, Workdir(workdir)).eval_cases()  # records them in the manifest


def _rows(case: Case, model: str, sentences: Sequence[str]) -> Iterator[Attempt]:
    """Yields the completions of one model on one case, each followed by its two verdicts."""
    texts = {stage: prompts.load(f"judge_{stage}") for stage in PARSE}
    for sample in range(SAMPLES):
        rng = random.Random(f"{case.fingerprint}/{model}/{sample}")
        trace = _trace(case, sentences, rng)
        right = rng.random() < (0.2 if model == MODELS[0] else 0.6)
        answer = case.final_diagnosis if right else "Another fictional fever"
        row = RowKey(stage="sample", case=case.fingerprint, model=model, sample=sample)
        yield _attempt(row, "bench", completion.render(trace, answer), None)
        requests = {
            "diagnosis": diagnosis.request(str(sample), case, answer, texts["diagnosis"]),
            "reasons": reasons.request(str(sample), case, trace, texts["reasons"]),
        }
        replies = {"diagnosis": {"same": right}, "reasons": _quoted(case, trace, rng)}
        for stage, request in requests.items():
            text = json.dumps(replies[stage], ensure_ascii=False)
            yield _judged(row.judged(stage, JUDGE), request, text)


def _judged(row: RowKey, request: Request, text: str) -> Attempt:
    return _attempt(row, request.digest("bench"), text, PARSE[row.stage](request, text))


def _attempt(row: RowKey, digest: str, text: str, verdict: object) -> Attempt:
    return Attempt(
        row=row, digest=digest, attempt=1, outcome=Outcome.OK, text=text, verdict=verdict
    )


def _trace(case: Case, sentences: Sequence[str], rng: random.Random) -> str:
    """Returns most statements of the case among sentences of other cases, 3 kB in all."""
    parts = [s for s in case.statements if rng.random() < 0.8]
    length = sum(map(len, parts))
    while length < TRACE_CHARACTERS:
        parts.append(rng.choice(sentences) + ".")
        length += len(parts[-1]) + 1
    rng.shuffle(parts)
    return " ".join(parts)


def _quoted(case: Case, trace: str, rng: random.Random) -> list[dict[str, object]]:
    """Returns a reply with up to three quotes per statement, one in five not in the trace."""
    sentences = trace.split(". ")
    reply = []
    for number, statement in enumerate(case.statements, start=1):
        found = [statement] if statement in trace else []
        found += rng.sample(sentences, rng.randrange(3))
        if rng.random() < 0.2:
            found.append(f"nowhere does it say “{statement[:40]}”")
        reply.append({"number": number, "quotes": list(itertools.islice(found, 3))})
    return reply


if __name__ == "__main__":
    main()
