"""Sixteen real cases, a real vocabulary and Gemini's wire, from the source to the report."""

import base64
import json
import pathlib
import re
import subprocess
import sys
import zlib

import pytest
from processes import TINY, is_schema_1, read, rows

from mcr_jax.cases import read_cases
from mcr_jax.completion import render
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, Scope

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
CASES = DATA / "cases" / "medcasereasoning_val_16.jsonl"
TOKENIZER = DATA / "tokenizers" / "spm_32k"
SAMPLES = 2
_PACKED = re.compile(r'"(eJ[A-Za-z0-9+/=]{100,})"')  # base64 of zlib: how a report holds a case
CONFIG = f"""
from mcr_jax import config


def get_config():
    c = config.default()
    c.name = "sixteen real cases"
    c.data.eval_split = "val"
    c.sample.models = ("base",)
    c.sample.n = {SAMPLES}
    c.sample.max_tokens = 24
    c.sample.prompt_tokens = 1024
    c.judge.name = "gemini"
    c.judge.recall_samples = 1
    c.score.resamples = 200
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CASES.exists(), reason=f"no real cases at ../shared/data/cases/{CASES.name}"
    ),
]


@pytest.fixture
def built(mcr):
    """A data_dir with the sixteen cases, which carry an article's text that no prompt may show."""
    lines = CASES.read_text().splitlines()
    source = mcr.folder / CASES.name
    texts = [f"Whole article {n}: its text names everything." for n in range(len(lines))]
    cases = [{**json.loads(line), "text": text} for line, text in zip(lines, texts, strict=True)]
    source.write_text("".join(f"{json.dumps(case, ensure_ascii=False)}\n" for case in cases))
    said = mcr.ok("build", f"--source={source}", "--data_dir=tfds")
    assert f"(val {len(cases)})" in said
    return mcr.folder / "tfds", read_cases(str(source))


@pytest.fixture
def flags(mcr, built):
    """--config and --workdir of an experiment on them with a decoder of random weights."""
    data_dir, _ = built
    model = {name: value for name, value in TINY.items() if name.startswith("model.")}
    model |= {"tokenizer.path": str(TOKENIZER), "data.data_dir": str(data_dir)}
    model["sample.slots"] = 32
    lines = [f"    c.{field} = {value!r}\n" for field, value in model.items()]
    (mcr.folder / "real.py").write_text(CONFIG + "".join(lines) + "    return c\n")
    return "--config=real.py", "--workdir=w"


def test_tfds_reads_the_sixteen_cases_in_a_new_process_as_they_were_published(mcr):
    mcr.ok("build", f"--source={CASES}", "--data_dir=tfds")
    code = (
        "import json, tensorflow_datasets as tfds\n"
        "source = tfds.data_source('medcasereasoning', split='val', data_dir='tfds')\n"
        "fields = ('pmcid', 'title', 'case_prompt', 'diagnostic_reasoning', 'final_diagnosis')\n"
        "print(json.dumps([{f: e[f].decode() for f in fields} for e in source]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=mcr.folder,
        env=mcr.env,
        capture_output=True,
        text=True,
        check=True,
    )
    there = {case["pmcid"]: case for case in json.loads(done.stdout)}
    published = {case["pmcid"]: case for case in map(json.loads, CASES.read_text().splitlines())}
    assert len(there) == len(published) == 16
    for pmcid, case in there.items():
        assert case.items() <= published[pmcid].items()


def test_real_cases_go_from_source_to_report_and_gemini_never_sees_title_or_text(
    mcr, built, flags, gemini
):
    _, cases = built
    keys = {"GEMINI_API_KEY": gemini.key, "GOOGLE_GEMINI_BASE_URL": gemini.url}
    out = mcr.ok("sample", *flags)
    assert f"sample: base: {len(cases) * SAMPLES} completions" in out
    workdir = mcr.folder / "w"
    outcomes = {row["outcome"] for row in rows(workdir, "sample")}
    assert outcomes <= {"OK", "TRUNCATED", "prompt_too_long"} and outcomes != {"prompt_too_long"}

    # Random weights name no disease: a clinician's words take the place of some completions.
    told = cases[:6]
    with Ledger(workdir / "ledger.sqlite") as ledger:
        drawn = ledger.answers(Scope("sample", "base"))
        for position, case in enumerate(told):
            for row, old in drawn.items():
                if row.case == case.fingerprint:
                    right = position < 4
                    answer = case.final_diagnosis if right else "Brindle rime"
                    trace = "\n".join(case.statements) if right else "It hums."
                    ledger.write(
                        Attempt(
                            row=row,
                            digest=old.digest,
                            attempt=old.attempt + 1,
                            outcome=Outcome.OK,
                            text=render(trace, answer),
                        )
                    )

    out = mcr.ok("eval", *flags, **keys)
    assert "completions, nothing to do" in out
    bodies = [json.dumps(call.body, ensure_ascii=False) for call in gemini.calls]
    wanted = [row for row in rows(workdir) if row["judge"].startswith("gemini:")]
    assert len(bodies) == len(set(bodies)) < len(wanted)  # equal questions are asked once
    assert {row["stage"] for row in wanted} == {"diagnosis", "reasons"}
    for case in cases:
        hidden = (case.title, case.text, case.case_prompt)
        escaped = [json.dumps(text, ensure_ascii=False)[1:-1] for text in hidden]
        for body in bodies:
            assert not any(text in body for text in escaped), case.pmcid

    results = read(workdir / "results.json")
    is_schema_1(results)
    assert results["data"]["synthetic"] is False and results["data"]["split"] == "val"
    verdicts = results["judge"]["verdicts"]
    assert verdicts["diagnosis"] == {"wanted": 6 * SAMPLES, "settled": 6 * SAMPLES}
    assert verdicts["reasons"]["settled"] == verdicts["reasons"]["wanted"] >= 6
    assert results["models"]["base"]["accuracy"]["1"]["value"] == pytest.approx(4 / 16)
    assert results["models"]["base"]["reasoning_recall_verified"]["value"] >= 4 / 16 - 1e-9
    page = (workdir / "report.html").read_text()
    assert "gemini:" in page
    shown = [zlib.decompress(base64.b64decode(part)).decode() for part in _PACKED.findall(page)]
    assert sum("Brindle rime" in text for text in shown) == 2
    assert "agrees" in mcr.ok("verify", *flags)
