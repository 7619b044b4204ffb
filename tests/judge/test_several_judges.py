"""Several judges, pairs and repeats: rows, agreement, repeatability, and what stays as it was."""

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from mcr_jax import config as configs
from mcr_jax.cases import Case
from mcr_jax.cli.main import main
from mcr_jax.completion import render
from mcr_jax.errors import McrError, UsageError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.judge.ask import check, judge
from mcr_jax.score.results import score
from mcr_jax.score.table import table
from mcr_jax.score.verify import verify
from mcr_jax.workdir import Workdir

STATEMENTS = ["The humming knees suggest it.", "There is no frost on the tongue."]
CASES = [
    Case(
        case_prompt=f"A lamplighter came with humming knees, visit {number}.",
        diagnostic_reasoning="\n".join(f"{n}. {s}" for n, s in enumerate(STATEMENTS, start=1)),
        final_diagnosis=diagnosis,
    )
    for number, diagnosis in enumerate(("Harrow fever", "Quellan itch"))
]
GEMINI, TWO = "gemini:gemini-3.5-flash-lite", "gemini,o=openai:judge-m"
OURS = ("ours=http://127.0.0.1:1/v1 OURS_KEY",)
YES, NO = '{"same": true}', '{"same": false}'


def config(**changes):
    made = configs.default()
    changes = {"sample.models": ("sft",), "score.resamples": 200, "judge.concurrency": 1} | changes
    for name in ("judge.models",):
        if isinstance(changes.get(name), str):
            changes[name] = tuple(changes[name].split(","))
    with made.unlocked():
        made.update_from_flattened_dict(changes)
    return configs.check(made, "test")


@pytest.fixture
def workdir(tmp_path):
    """Four completions, two of each case: one with the diagnosis, one with another name.

    Both cases have the same statements and traces: a judge of reasons gets one question.
    """
    workdir, scope = Workdir(tmp_path / "run"), Scope("sample", "sft")
    rows = {
        RowKey(stage="sample", case=case.fingerprint, model="sft", sample=sample): render(
            STATEMENTS[0], answer
        )
        for case in CASES
        for sample, answer in enumerate((case.final_diagnosis, f"Not {case.final_diagnosis}"))
    }
    with Ledger(workdir.ledger) as ledger:
        ledger.declare(scope, dict.fromkeys(rows, "d"))
        for row, text in rows.items():
            of_row = {"digest": "d", "attempt": 1, "outcome": Outcome.OK}
            ledger.write(Attempt(row=row, text=text, **of_row))
    return workdir


def stored(workdir, stage="diagnosis", name="offline"):
    """{(case number, sample, repeat): attempt} of a judge."""
    number = {case.fingerprint: at for at, case in enumerate(CASES)}
    with Ledger(workdir.ledger, readonly=True) as ledger:
        answers = ledger.answers(Scope(stage, "sft", name))
    return {(number[r.case], r.sample, r.repeat): a for r, a in answers.items()}


# -- as it was ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model", "digests"),
    [
        ("offline", "gemini-3.5-flash-lite", ("3de4b38228fe6fba", "203d9a72094be36e")),
        ("gemini", "gemini-3.5-flash-lite", ("d0235958e9f6045d", "356d8364a8d512bc")),
        ("openai", "gpt-4o-mini", ("11bd8521c67a384e", "6c01959cbfc3d99f")),
    ],
)
@pytest.mark.parametrize("as_models", [False, True])
def test_digests_of_one_judge_are_those_of_ledgers_before_there_were_several(
    tmp_path, gemini, openai, name, model, digests, as_models
):
    """If a prompt was changed on purpose, print the new digests and put them here."""
    case, workdir = CASES[0], Workdir(tmp_path / "old")
    case = Case(
        case_prompt="A lamplighter came with humming knees.",
        diagnostic_reasoning=case.diagnostic_reasoning,
        final_diagnosis=case.final_diagnosis,
    )
    row = RowKey(stage="sample", case=case.fingerprint, model="sft", sample=0)
    text = render(STATEMENTS[0], "Another fever")
    with Ledger(workdir.ledger) as ledger:
        ledger.declare(Scope("sample", "sft"), {row: "d"})
        ledger.write(Attempt(row=row, digest="d", attempt=1, outcome=Outcome.OK, text=text))
    spec = name if name == "offline" else f"{name}:{model}"
    fields = {"judge.models": spec} if as_models else {"judge.name": name, "judge.model": model}
    judge(workdir, config(**fields), [case])
    with Ledger(workdir.ledger, readonly=True) as ledger:
        found = [
            attempt.digest[:16]
            for stage in ("diagnosis", "reasons")
            for attempt in ledger.answers(Scope(stage, "sft", spec)).values()
        ]
    assert tuple(found) == digests


@pytest.mark.parametrize("entry", ["gemini", GEMINI])
def test_a_judge_by_spec_finds_the_verdicts_of_the_same_judge_by_name(workdir, gemini, entry):
    before = config(**{"judge.name": "gemini"})
    judge(workdir, before, CASES)
    results, calls = score(workdir, before), len(gemini.calls)
    manifest = workdir.read_json(workdir.manifest)
    assert judge(workdir, config(**{"judge.models": entry}), CASES)["asked"] == 0
    assert len(gemini.calls) == calls and workdir.read_json(workdir.manifest) == manifest
    assert score(workdir, config(**{"judge.models": entry})) == results


def test_one_judge_without_repeats_adds_no_field(workdir):
    judge(workdir, config(), CASES)
    results = score(workdir, config())
    assert "judges" not in results and "judges" not in workdir.sections()
    added = {"status", "repeat", "repeatability"}
    assert not added & results["judge"].keys()
    scores = workdir.read_json(workdir.scores)
    assert scores.keys() == {"schema", "models"}
    assert "repeats" not in scores["models"]["sft"][CASES[0].fingerprint]


# -- several --------------------------------------------------------------------------------------


def test_several_judges_have_rows_of_their_own_and_the_first_is_the_headline(
    workdir, gemini, openai
):
    both = config(**{"judge.models": TWO})
    # The second judge finds one wrong answer right.
    openai.then(openai.says(YES), openai.says(YES), openai.says(YES), openai.says(NO))
    counts = judge(workdir, both, CASES)
    assert (counts["judge"], counts["further"][0]["judge"]) == (GEMINI, "o")
    order = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]
    if sorted(case.fingerprint for case in CASES)[0] != CASES[0].fingerprint:
        order = order[2:] + order[:2]
    assert [stored(workdir, name="o")[at].verdict["same"] for at in order] == [True] * 3 + [False]
    assert [stored(workdir, name=GEMINI)[at].verdict["same"] for at in order] == [True, False] * 2
    results = score(workdir, both)
    alone = score(workdir, config(**{"judge.models": "gemini"}))
    assert {key: results[key] for key in alone} == alone
    score(workdir, both)
    other = results["judges"]["o"]
    assert other["identity"] == "openai/judge-m"
    assert other["verdicts"]["diagnosis"] == {"wanted": 4, "settled": 4}
    assert other["versions"]["diagnosis"] == {"loopback-1": 4}
    assert other["models"]["sft"]["accuracy"]["1"]["value"] == 0.75
    agreed = other["agreement"]["diagnosis"]
    assert agreed["n"] == 4 and agreed["raw"]["value"] == 0.75
    assert agreed["kappa"]["value"] == pytest.approx(0.5)  # (3/4 - 1/2) / (1 - 1/2)
    assert agreed["ac1"]["value"] == pytest.approx((3 / 4 - 15 / 32) / (1 - 15 / 32))
    statements = other["agreement"]["reasons"]
    assert statements["n"] == 4 and statements["raw"]["value"] == 1.0
    case = workdir.read_json(workdir.scores)["judges"]["o"]["sft"][CASES[0].fingerprint]
    assert len(case["right"]) == 2 and case["recall"] == [0.5]
    assert verify(workdir, both, CASES) == ([], 12, 0)
    assert (other["usage"]["requests"], results["judge"]["usage"]["requests"]) == (5, 5)
    notes = str(table(results).renderables[2])
    assert "Cost: 10 calls" in notes
    assert "Judge o: accuracy@1 0.750 for sft" in notes and "on 4 diagnoses" in notes
    assert judge(workdir, both, CASES)["further"][0]["asked"] == 0


def test_scored_in_another_order_each_judge_keeps_its_facts(workdir, gemini, openai):
    judge(workdir, config(**{"judge.models": TWO}), CASES)
    before = score(workdir, config(**{"judge.models": TWO}))
    turned = config(**{"judge.models": ",".join(reversed(TWO.split(",")))})
    after = score(workdir, turned)
    assert (after["judge"]["name"], after["judge"]["identity"]) == ("o", "openai/judge-m")
    assert after["judge"]["prompts"] == before["judge"]["prompts"]
    assert after["judges"][GEMINI]["identity"] == before["judge"]["identity"]
    assert after["models"]["sft"]["accuracy"] == before["judges"]["o"]["models"]["sft"]["accuracy"]
    assert verify(workdir, turned, CASES).differences == []


def test_a_planted_verdict_of_a_further_judge_is_found(workdir, gemini, openai):
    both = config(**{"judge.models": TWO})
    judge(workdir, both, CASES)
    score(workdir, both)
    with contextlib.closing(sqlite3.connect(workdir.ledger)) as db, db:
        query = "UPDATE attempts SET verdict = ? WHERE judge = 'o' AND stage = 'diagnosis' "
        db.execute(query + "AND sample = 1 AND case_fingerprint = ?", (YES, CASES[0].fingerprint))
    lines = verify(workdir, both, CASES).differences
    assert any("its reply gives {'same': False}" in line for line in lines)
    assert any("judges.o.models.sft.accuracy.1.value" in line for line in lines)
    assert any(line.startswith("scores.json: judges.o.sft.") for line in lines)


def test_judges_of_other_statements_are_one_line(workdir, gemini):
    both = config(**{"judge.models": "gemini,offline"})
    judge(workdir, both, CASES)
    with contextlib.closing(sqlite3.connect(workdir.ledger)) as db, db:
        query = "UPDATE attempts SET verdict = ? WHERE judge = 'offline' AND stage = 'reasons'"
        db.execute(query, ('{"found": [true], "verified": [true]}',))
    with pytest.raises(McrError, match=r"is damaged .*of 2 and of 1 statements.*reads its reply"):
        score(workdir, both)


def test_versions_of_a_further_judge_that_are_mixed_leave_the_headline_alone(
    workdir, gemini, openai, capsys
):
    both = config(**{"judge.models": "o=openai:judge-m,gemini"})
    gemini.then(gemini.says(YES, modelVersion="v-1"), gemini.says(YES, modelVersion="v-2\x1b[2J"))
    judge(workdir, both, CASES)
    results = score(workdir, both)
    assert results["models"]["sft"]["accuracy"]["1"]["value"] == 0.5
    out = capsys.readouterr().out
    assert "3 model versions" in out and "v-2?[2J (1)" in out and "\x1b" not in out
    other = results["judges"][GEMINI]
    assert "several versions" in other["note"]
    assert other["models"]["sft"]["accuracy"]["1"]["value"] is None
    assert other["agreement"]["diagnosis"]["n"] == 0
    assert verify(workdir, both, CASES).differences == []


def of_model(openai, text, version):
    choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop"}
    return openai.replies({"choices": [choice], "model": version})


@pytest.mark.promise("Versions are counted for each model of a pair")
def test_the_pair_of_the_paper_asks_one_model_per_stage(workdir, openai, capsys):
    small, reasoning = "gpt-4o-mini-2024-07-18", "o4-mini-2025-04-16"
    found = json.dumps({"reply": [{"number": n, "quotes": []} for n in (1, 2)]})
    openai.then(*[of_model(openai, YES, small)] * 4, of_model(openai, found, reasoning))
    paper = config(**{"judge.models": "paper"})
    assert judge(workdir, paper, CASES)["judge"] == "paper"
    assert [call.body["model"] for call in openai.calls] == ["gpt-4o-mini"] * 4 + ["o4-mini"]
    assert "temperature" in openai.calls[0].body and "temperature" not in openai.calls[-1].body
    results = score(workdir, paper)
    assert results["judge"]["identity"] == (
        "diagnosis: openai/gpt-4o-mini; reasons: openai/o4-mini/sampling=service default"
    )
    assert results["judge"]["versions"] == {"diagnosis": {small: 4}, "reasons": {reasoning: 2}}
    assert results["models"]["sft"]["accuracy"]["1"]["value"] == 1.0  # two models, not mixed
    assert "and the service reports" not in capsys.readouterr().out  # dated names of these models
    named = config(**{"judge.models": "paper", "judge.version": f"{small}+{reasoning}"})
    assert judge(workdir, named, CASES)["asked"] == 0
    with pytest.raises(UsageError, match="name both versions"):
        judge(workdir, config(**{"judge.models": "paper", "judge.version": small}), CASES)
    with pytest.raises(UsageError, match=r"judge\.version='old' gave none"):
        wrong = {"judge.models": "paper", "judge.version": f"{small}+old"}
        judge(workdir, config(**wrong), CASES)
    assert len(openai.calls) == 5


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ("hf:folder", "served"),
        ("base", "served"),
        ("x=sft@3", "served"),
        ("file:made.jsonl", "served"),
        ("x=vllm:m", "no judge 'vllm:m'"),
        ("x=diagnosis:offline", "is no pair"),
        ("offline,a=openai:m,a=openai:n", "'a' twice"),
        ("a=openai:m,b=openai:m", "agrees with itself"),
        ("=offline", "needs a name"),
        ("offline,gemini", "GEMINI_API_KEY"),
        ("x=diagnosis:ours:m+reasons:elsewhere:m", "no judge 'elsewhere:m'.*ours:MODEL"),
        ("ours:m", "no key for ours: set OURS_KEY"),
        ("ours:m,x=ours:m", "agrees with itself"),
    ],
)
def test_a_judge_that_cannot_be_called_is_one_line(workdir, monkeypatch, models, words):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with pytest.raises(UsageError, match=words) as raised:
        check(workdir, config(**{"judge.models": models, "endpoints": OURS}))
    assert "\n" not in str(raised.value)


# -- repeats --------------------------------------------------------------------------------------


def of_first(workdir, **fields):
    """Judges the first completion of the first case only."""
    one = config(**{"judge.name": "gemini"} | fields)
    with Ledger(workdir.ledger) as ledger:
        row = RowKey(stage="sample", case=CASES[0].fingerprint, model="sft", sample=0)
        ledger.declare(Scope("sample", "sft"), {row: "d"})
    judge(workdir, one, CASES)
    results = score(workdir, one)
    assert verify(workdir, one, CASES).differences == []
    return results, workdir.read_json(workdir.scores)["models"]["sft"][CASES[0].fingerprint]


@pytest.mark.parametrize(
    ("says", "right", "agree"),
    [
        ((YES, YES, NO), True, 0.0),
        ((NO, YES, NO), False, 0.0),
        ((NO, NO, NO), False, 1.0),
        ((YES, NO), None, 0.0),
        ((YES, YES), True, 1.0),
    ],
)
@pytest.mark.promise("a tie is unresolved")
def test_the_majority_of_the_repeats_decides_and_a_tie_is_unresolved(
    workdir, gemini, says, right, agree
):
    gemini.then(*map(gemini.says, says))
    results, case = of_first(workdir, **{"judge.repeat": len(says)})
    assert case["right"] == [right]
    assert case["repeats"]["right"] == [[text == YES for text in says]]
    seeds = [call.body["generationConfig"]["seed"] for call in gemini.calls]
    assert seeds == [*range(len(says))] * 2  # each repeat is a draw of its own
    about = results["judge"]
    assert about["repeat"] == len(says) and about["verdicts"]["diagnosis"]["wanted"] == len(says)
    assert about["repeatability"]["diagnosis"]["value"] == agree
    value = results["models"]["sft"]["accuracy"]["1"]["value"]
    assert value == (None if right is None else float(right))


def test_recall_is_the_mean_of_the_repeats_that_are_there(workdir, gemini):
    def found(*numbers):
        quotes = {n: [STATEMENTS[0]] if n in numbers else [] for n in (1, 2)}
        reply = [{"number": n, "quotes": quoted} for n, quoted in quotes.items()]
        return gemini.says(json.dumps(reply))

    blocked = gemini.says("", finish="SAFETY")
    fields = {"judge.repeat": 3, "judge.attempts": 1}
    gemini.then(*[gemini.says(YES)] * 3, found(1), blocked, found())
    results, case = of_first(workdir, **fields)
    assert case["recall"] == [0.25] and case["repeats"]["recall"] == [[0.5, None, 0.0]]
    assert results["judge"]["repeatability"]["reasons"]["cases"] == 0  # a repeat is missing
    gemini.then(found(1))
    results, case = of_first(workdir, **fields)
    assert case["repeats"]["recall"] == [[0.5, 0.5, 0.0]]
    assert results["judge"]["repeatability"]["reasons"]["value"] == 0.5  # one of two statements


def test_a_majority_that_missing_repeats_could_turn_is_unresolved(workdir, gemini):
    blocked = gemini.says("", finish="SAFETY")
    gemini.then(gemini.says(YES), blocked, blocked)
    _, case = of_first(workdir, **{"judge.repeat": 3, "judge.attempts": 1})
    assert case["right"] == [None] and case["repeats"]["right"] == [[True, None, None]]


@pytest.mark.promise("A larger `judge.repeat` later asks only for the new ones")
def test_more_repeats_ask_for_the_new_ones_only_and_fewer_for_none(workdir, gemini):
    one, three = ({"judge.name": "gemini", "judge.repeat": n} for n in (1, 3))
    judge(workdir, config(**one), CASES)
    first, calls = score(workdir, config(**one)), len(gemini.calls)
    assert judge(workdir, config(**three), CASES)["asked"] == 2 * 6
    assert len(gemini.calls) == 3 * calls
    assert len(stored(workdir, name=GEMINI)) == 12
    assert judge(workdir, config(**one), CASES)["asked"] == 0
    again = score(workdir, config(**one))
    for results in (first, again):  # three repeats cost more than one
        results["judge"].pop("usage")
    assert again == first


@pytest.mark.slow
@pytest.mark.promise("Paid once.")
def test_after_kill_9_the_repeats_that_came_are_kept(gemini, clinic_data, tmp_path, clinic_cases):
    made = tmp_path / "made.jsonl"
    lines = [
        {
            "case": case.fingerprint,
            "sample": sample,
            "text": render(STATEMENTS[0], f"{number}.{sample}"),
        }
        for number, case in enumerate(clinic_cases["test"][:4])
        for sample in range(4)
    ]
    made.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {
        "data.data_dir": clinic_data,
        "data.eval_cases": 4,
        "sample.models": f"m=file:{made}",
        "sample.n": 4,
        "judge.models": GEMINI,
        "judge.repeat": 3,
        "judge.concurrency": 4,
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    flags = ["--config=eval", f"--workdir={tmp_path / 'w'}", *flags]
    assert main(["sample", *flags]) == 0
    command = [sys.executable, "-m", "mcr_jax", "judge", *flags]
    gemini.gather(4)  # until the kill, calls are answered four at a time
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as killed:
        while len(gemini.calls) < 24:
            assert killed.poll() is None
            time.sleep(0.001)
        killed.send_signal(signal.SIGKILL)
    gemini.gather(1)
    before = len(gemini.calls)
    with Ledger(tmp_path / "w" / "ledger.sqlite") as ledger:
        kept = sum(ledger.held(Scope(stage, "m", GEMINI)) for stage in ("diagnosis", "reasons"))
    assert 0 < kept <= before
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with Ledger(tmp_path / "w" / "ledger.sqlite", readonly=True) as ledger:
        answers = {
            row: attempt
            for stage in ("diagnosis", "reasons")
            for row, attempt in ledger.answers(Scope(stage, "m", GEMINI)).items()
        }
    assert {row.repeat for row in answers} == {0, 1, 2} and all(answers.values())
    assert len(answers) == 4 * 4 * 3 + 4 * 3
    assert len(gemini.calls) - before == len(answers) - kept


def test_repeats_of_fixed_rules_agree(workdir):
    judge(workdir, config(**{"judge.repeat": 2}), CASES)
    results = score(workdir, config(**{"judge.repeat": 2}))
    shares = [share["value"] for share in results["judge"]["repeatability"].values()]
    assert shares == [1.0, 1.0]
    assert "Same diagnosis verdict in every repeat: 1.000" in str(table(results).renderables[2])


def test_no_verdict_of_a_further_judge_is_one_line_that_names_it(workdir, gemini, openai):
    openai.then(*[openai.says("maybe")] * 20)
    with pytest.raises(McrError, match=r"not one of 6 verdicts could be had from o: .*not JSON"):
        judge(workdir, config(**{"judge.models": TWO}), CASES)
