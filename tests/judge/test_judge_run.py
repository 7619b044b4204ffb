"""Judging stage: rows, joins, no repeated calls, and failures in one line."""

import contextlib
import json
import re
import sqlite3

import pytest

from mcr_jax import config as configs
from mcr_jax import synthetic
from mcr_jax.completion import render
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.judge.ask import judge, too_few
from mcr_jax.score import stage as scoring
from mcr_jax.score.results import score
from mcr_jax.workdir import Workdir

CASES = synthetic.cases(5, {"test": 3})
GOOD, BAD = CASES[0].final_diagnosis, "Quite another thing"


def config(**changes):
    made = configs.default()
    made.sample.models = ("sft",)
    with made.unlocked():
        made.update_from_flattened_dict(changes)
    return made


def completed(workdir, texts, model="sft"):
    """Writes completions: {(case number, sample): text, or an outcome without text}."""
    rows = {
        RowKey(stage="sample", case=CASES[c].fingerprint, model=model, sample=s): said
        for (c, s), said in texts.items()
    }
    with Ledger(workdir.ledger) as ledger:
        ledger.declare(Scope("sample", model), dict.fromkeys(rows, "d"))
        for row, said in rows.items():
            outcome = said if isinstance(said, Outcome) else Outcome.OK
            text = "" if isinstance(said, Outcome) else said
            ledger.write(Attempt(row=row, digest="d", attempt=1, outcome=outcome, text=text))


def told(case, answer=None):
    return render(" ".join(CASES[case].statements), answer or CASES[case].final_diagnosis)


def verdicts(workdir, stage, model="sft", name="offline"):
    """{(case number, sample): verdict}."""
    number = {case.fingerprint: i for i, case in enumerate(CASES)}
    with Ledger(workdir.ledger, readonly=True) as ledger:
        answers = ledger.answers(Scope(stage, model, name))
    return {(number[r.case], r.sample): a and a.verdict for r, a in answers.items()}


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path / "run")


def test_verdicts_are_joined_to_their_completions(workdir):
    completed(
        workdir, {(0, 0): told(0), (0, 1): told(0, BAD), (1, 0): told(1), (2, 0): told(2, BAD)}
    )
    counts = judge(workdir, config(), list(reversed(CASES)))
    assert verdicts(workdir, "diagnosis") == {
        (0, 0): {"same": True},
        (0, 1): {"same": False},
        (1, 0): {"same": True},
        (2, 0): {"same": False},
    }
    recalled = verdicts(workdir, "reasons")
    assert set(recalled) == {(0, 0), (1, 0), (2, 0)}
    for (case, _), verdict in recalled.items():
        assert verdict["verified"] == verdict["found"] == [True] * len(CASES[case].statements)
    assert [counts[k] for k in ("total", "asked", "settled", "unresolved")] == [7, 7, 7, 0]


def test_only_one_clear_answer_and_only_a_trace_are_judged(workdir):
    completed(
        workdir,
        {
            (0, 0): "<think>hum</think> no answer",
            (0, 1): f"<answer>{GOOD}</answer><answer>{BAD}</answer>",
            (0, 2): Outcome.INFRA_ERROR,
            (1, 0): f"<answer>{GOOD}</answer>",
            (2, 0): Outcome.PROMPT_TOO_LONG,
        },
    )
    judge(workdir, config(), CASES)
    assert set(verdicts(workdir, "diagnosis")) == {(1, 0)}
    assert set(verdicts(workdir, "reasons")) == {(0, 0)}


def test_recall_is_judged_for_as_many_samples_as_asked_for(workdir):
    completed(workdir, {(0, s): told(0) for s in range(4)})
    judge(workdir, config(**{"judge.recall_samples": 3}), CASES)
    assert set(verdicts(workdir, "reasons")) == {(0, 0), (0, 1), (0, 2)}


def test_second_call_asks_nothing_and_says_so(workdir):
    completed(workdir, {(0, 0): told(0), (1, 0): told(1)})
    first, second = judge(workdir, config(), CASES), judge(workdir, config(), CASES)
    assert (first["asked"], second["asked"], second["total"]) == (4, 0, 4)
    again = second["models"]["sft"]["reasons"]
    assert again == {"total": 2, "asked": 0, "settled": 0, "unresolved": 0}


def test_new_prompt_asks_again_and_the_manifest_names_it(workdir, tmp_path):
    completed(workdir, {(0, 0): told(0)})
    judge(workdir, config(), CASES)
    before = workdir.read_json(workdir.manifest)["judge"]
    (tmp_path / "judge_diagnosis.txt").write_text("Same? {{reference}} {{predicted}}")
    counts = judge(workdir, config(prompts=str(tmp_path)), CASES)
    after = workdir.read_json(workdir.manifest)["judge"]
    assert (counts["asked"], counts["total"]) == (1, 2)
    assert (before["name"], before["identity"]) == ("offline", "offline/1")
    changed = {n for n in after["prompts"] if after["prompts"][n] != before["prompts"][n]}
    assert changed == {"judge_diagnosis"}


def test_every_model_of_the_config_is_judged_for_itself(workdir):
    completed(workdir, {(0, 0): told(0)}, "sft")
    completed(workdir, {(0, 0): told(0, BAD)}, "base")
    judge(workdir, config(**{"sample.models": ("base", "sft")}), CASES)
    assert verdicts(workdir, "diagnosis", "base") == {(0, 0): {"same": False}}
    assert verdicts(workdir, "diagnosis", "sft") == {(0, 0): {"same": True}}


def test_completions_of_cases_not_asked_for_are_left_alone(workdir):
    completed(workdir, {(0, 0): told(0), (1, 0): told(1)})
    judge(workdir, config(), CASES[:1])
    assert set(verdicts(workdir, "diagnosis")) == {(0, 0)}


def test_nothing_to_judge_says_which_command_comes_first(workdir):
    with pytest.raises(McrError, match="run `mcr sample` first"):
        judge(workdir, config(), CASES)
    completed(workdir, {(0, 0): told(0)}, "base")
    with pytest.raises(McrError, match="no completions of sft yet; run `mcr sample` first"):
        judge(workdir, config(), CASES)


def test_unknown_judge_is_a_usage_error(workdir):
    completed(workdir, {(0, 0): told(0)})
    with pytest.raises(UsageError, match=r"judge\.name is 'oracle'"):
        judge(workdir, config(**{"judge.name": "oracle"}), CASES)


def with_gemini(**changes):
    return config(**{"judge.name": "gemini", "judge.concurrency": 1, "judge.attempts": 2} | changes)


def test_gemini_judges_the_same_rows_on_the_same_path(workdir, gemini):
    completed(workdir, {(0, 0): told(0), (0, 1): told(0, BAD)})
    counts = judge(workdir, with_gemini(**{"judge.concurrency": 4}), CASES)
    name = "gemini:gemini-3.5-flash-lite"
    assert (counts["judge"], counts["settled"], len(gemini.calls)) == (name, 3, 3)
    assert verdicts(workdir, "diagnosis", name=name) == {
        (0, 0): {"same": True},
        (0, 1): {"same": False},
    }
    assert all(verdicts(workdir, "reasons", name=name)[0, 0]["verified"])
    assert judge(workdir, with_gemini(), CASES)["asked"] == 0
    assert len(gemini.calls) == 3


@pytest.mark.promise("No model sees the title or the text of an article.")
def test_title_and_article_never_reach_the_service(workdir, gemini):
    completed(workdir, {(c, 0): told(c) for c in range(3)})
    judge(workdir, with_gemini(), CASES)
    sent = "".join(call.text for call in gemini.calls)
    assert not any(case.title in sent or case.case_prompt in sent for case in CASES)


def answers(*names):
    """Four different answers for one case: no two of its prompts are equal."""
    return {(0, sample): told(0, name) for sample, name in enumerate(names)}


def with_version(gemini, text, version):
    return gemini.says(text, modelVersion=version)


@pytest.mark.promise("Every call of `mcr judge` requests missing verdicts again")
def test_what_is_not_ok_is_counted_told_and_asked_for_again_by_the_next_call(
    workdir, gemini, capsys
):
    completed(workdir, answers("A", "B", "C", GOOD))
    odd, refused = gemini.says("maybe"), gemini.says("", finish="SAFETY")
    cut = gemini.says('{"sa', finish="MAX_TOKENS")
    gemini.then(odd, refused, cut, gemini.says('{"same": true}'), odd, refused, cut)
    first = judge(workdir, with_gemini(), CASES)
    said = capsys.readouterr().out
    assert [first[k] for k in ("total", "asked", "settled", "unresolved")] == [5, 5, 2, 3]
    assert "diagnosis of sft: 3 of 4 without a verdict" in said
    assert all(part in said for part in ("1 MALFORMED", "1 BLOCKED", "1 TRUNCATED", "not JSON"))
    assert "`mcr judge` asks for them again" in said
    asked = len(gemini.calls)
    second = judge(workdir, with_gemini(), CASES)
    assert [second[k] for k in ("total", "asked", "settled", "unresolved")] == [5, 3, 3, 0]
    limits = [c.body["generationConfig"]["maxOutputTokens"] for c in gemini.calls]
    assert limits[:7] == [16_384] * 6 + [32_768]
    assert sorted(limits[asked:]) == [16_384, 16_384, 65_536]
    assert "without a verdict" not in capsys.readouterr().out


@pytest.mark.promise("Equal requests share one call")
def test_equal_questions_of_all_models_and_calls_are_asked_once(workdir, gemini):
    for model in ("base", "sft"):
        completed(workdir, {(0, s): told(0) for s in range(4)} | {(1, 0): told(1)}, model)
    both = {"sample.models": ("base", "sft")}
    counts = judge(workdir, with_gemini(**both), CASES)
    assert (counts["total"], counts["unresolved"], len(gemini.calls)) == (14, 0, 4)
    completed(workdir, {(0, s): told(0) for s in range(6)}, "later")
    later = judge(workdir, with_gemini(**{"sample.models": ("later=base",)}), CASES)
    assert (later["total"], later["unresolved"], len(gemini.calls)) == (7, 0, 4)


def test_one_verdict_that_cannot_be_had_is_one_error_and_the_next_call_goes_on(workdir, gemini):
    completed(workdir, {(0, 0): told(0)})
    gemini.then(*(gemini.says("maybe") for _ in range(4)))
    with pytest.raises(McrError, match=r"not one of 2 verdicts .* not JSON") as raised:
        judge(workdir, with_gemini(), CASES)
    assert "\n" not in str(raised.value)
    assert judge(workdir, with_gemini(), CASES)["settled"] == 2


@pytest.mark.promise(
    "Exit status 1 means that more than `judge.unresolved_limit` of the verdicts (1 %) are "
    "still missing."
)
@pytest.mark.promise("1 the work failed or too many verdicts are missing")
@pytest.mark.parametrize(
    ("missing", "limit", "too_many"),
    [(0, 0.0, False), (1, 0.0, True), (1, 0.01, False), (2, 0.01, True), (29, 0.29, False)],
)
def test_more_missing_verdicts_than_the_limit_are_one_line(missing, limit, too_many):
    counts = {"total": 100, "unresolved": missing}
    line = too_few(counts, config(**{"judge.unresolved_limit": limit}))
    assert bool(line) is too_many and "\n" not in line
    assert not too_many or f"{missing} of 100 verdicts are missing" in line


def test_several_model_versions_are_one_line_until_the_config_names_one(workdir, gemini, capsys):
    completed(workdir, answers("A", "B", "C"))
    replies = [
        with_version(gemini, f'{{"same": {same}}}', v)
        for same, v in (("true", "v-1"), ("false", "v-1"), ("true", "v-2"))
    ]
    gemini.then(*replies)
    counts = judge(workdir, with_gemini(), CASES)
    assert counts["versions"] == {"v-1": 2, "v-2": 1, "loopback-1": 1}
    said = capsys.readouterr().out
    assert "from 3 model versions, v-1 (2), v-2 (1), loopback-1 (1)" in said
    gemini.then(with_version(gemini, '{"same": true}', "v-1"))
    named = judge(workdir, with_gemini(**{"judge.version": "v-1"}), CASES)
    assert (named["asked"], named["unresolved"], named["versions"]) == (
        2,
        1,
        {"v-1": 3, "loopback-1": 1},
    )
    assert "model versions" not in capsys.readouterr().out


def test_a_verdict_that_counts_is_not_hidden_by_a_worse_one_that_came_later(workdir, gemini):
    completed(workdir, answers("A", "B"))
    same = '{"same": true}'
    gemini.then(*(with_version(gemini, same, version) for version in ("v-1", "v-2")))
    judge(workdir, with_gemini(), CASES)
    cut = gemini.says('{"sa', finish="MAX_TOKENS", modelVersion="v-1")
    gemini.then(*[cut] * 4)  # of the diagnosis and the reasons that are not of v-2
    judge(workdir, with_gemini(**{"judge.version": "v-2"}), CASES)
    for version, missing in (("v-1", 2), ("", 0)):  # its verdict counts again without a call
        asked = len(gemini.calls)
        gemini.then(*[cut] * 4)
        counts = judge(workdir, with_gemini(**{"judge.version": version}), CASES)
        assert counts["unresolved"] == missing
        assert len(gemini.calls) - asked == 2 * missing
    assert counts["versions"] == {"v-1": 1, "v-2": 1, "loopback-1": 1}


def test_a_run_that_ends_early_leaves_no_verdicts_of_the_judge_before_it(workdir, gemini):
    completed(workdir, answers("A", "B"))
    judge(workdir, with_gemini(), CASES)
    gemini.then(gemini.says('{"same": true}'), gemini.error(429, "spent", quota="CallsPerDay"))
    with pytest.raises(Stopped, match="CallsPerDay"):
        judge(workdir, with_gemini(**{"judge.thinking": "high"}), CASES)
    results = score(workdir, with_gemini(**{"judge.thinking": "high"}))
    assert results["judge"]["identity"].endswith("thinking=high")
    settled = {stage: of["settled"] for stage, of in results["judge"]["verdicts"].items()}
    assert settled == {"diagnosis": 1, "reasons": 0}
    asked = len(gemini.calls)
    assert judge(workdir, with_gemini(), CASES)["unresolved"] == 0
    assert len(gemini.calls) == asked


def test_a_version_that_gave_no_verdict_is_a_usage_error_before_anything_is_asked(workdir, gemini):
    completed(workdir, {(0, 0): told(0)})
    judge(workdir, with_gemini(), CASES)
    with pytest.raises(UsageError, match=r"judge\.version='v-9' .*loopback-1 \(2\)"):
        judge(workdir, with_gemini(**{"judge.version": "v-9"}), CASES)
    assert len(gemini.calls) == 2


def test_shorter_quotes_are_checked_again_without_a_call(workdir, gemini):
    completed(workdir, {(0, 0): told(0)})
    name, trace = "gemini:gemini-3.5-flash-lite", " ".join(CASES[0].statements)
    verdict = [
        {"number": n, "quotes": [" ".join(trace.split()[:2])]}
        for n in range(1, len(CASES[0].statements) + 1)
    ]
    gemini.then(gemini.says('{"same": true}'), gemini.says(json.dumps(verdict)))
    judge(workdir, with_gemini(), CASES)
    assert not any(verdicts(workdir, "reasons", name=name)[0, 0]["verified"])
    judge(workdir, with_gemini(**{"judge.quote_words": 2}), CASES)
    assert all(verdicts(workdir, "reasons", name=name)[0, 0]["verified"])
    assert len(gemini.calls) == 2


def test_a_verdict_of_another_form_is_read_again_as_its_line_says(workdir, gemini):
    completed(workdir, {(0, 0): told(0)})
    judge(workdir, with_gemini(), CASES)
    whole = score(workdir, with_gemini())
    with contextlib.closing(sqlite3.connect(workdir.ledger)) as db, db:
        db.execute("UPDATE attempts SET verdict = '[]' WHERE stage = 'reasons'")
    with pytest.raises(McrError, match="row 3 is damaged") as raised:
        score(workdir, with_gemini())
    (cure,) = re.findall('sqlite3 ledger.sqlite "(.*)"', str(raised.value))
    with contextlib.closing(sqlite3.connect(workdir.ledger)) as db, db:
        db.execute(cure)
    judge(workdir, with_gemini(), CASES)
    assert (score(workdir, with_gemini()), len(gemini.calls)) == (whole, 2)


def test_scores_of_verdicts_that_were_read_by_other_rules_say_so(workdir, capsys):
    completed(workdir, {(0, 0): told(0)})
    judge(workdir, config(), CASES)
    for words, told_so in ((4, False), (9, True)):
        scoring.run(Experiment(config(**{"judge.quote_words": words}), workdir))
        assert ("read by other rules" in capsys.readouterr().out) is told_so


def test_what_the_service_says_of_its_model_is_said_once(workdir, gemini, capsys):
    completed(workdir, answers("A", "B"))
    status = {"modelStage": "DEPRECATED", "retirementTime": "2026-12-01T00:00:00Z"}
    gemini.then(*(gemini.says('{"same": true}', modelStatus=status) for _ in range(2)))
    judge(workdir, with_gemini(), CASES)
    assert capsys.readouterr().out.count("DEPRECATED; retires 2026-12-01") == 1


def test_bad_key_stops_at_the_first_call(workdir, gemini):
    completed(workdir, {(c, 0): told(c) for c in range(3)})
    gemini.then(gemini.error(403, "not allowed"))
    with pytest.raises(McrError, match="HTTP 403"):
        judge(workdir, with_gemini(), CASES)
    assert len(gemini.calls) == 1
