"""Numbers of `mcr compare` against recomputations, and what it refuses."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from workdirs import cases, scored

from mcr_jax import config, statistics
from mcr_jax.cli.main import main
from mcr_jax.compare.chosen import chosen, common, differences
from mcr_jax.compare.pairs import numbers
from mcr_jax.judges.choose import readings

A = [1, 1, 0, 0, 1, 0, 1, 0, 0, 1]
B = [1, 1, 1, 1, 1, 0, 0, 1, 1, 1]
READINGS = readings(config.default())


def _found(*operands):
    return numbers(chosen([str(operand) for operand in operands]))


def _entry(found, metric, a=None, b=None):
    return next(
        c
        for c in found["comparisons"]
        if c["metric"] == metric and a in (None, c["a"]) and b in (None, c["b"])
    )


def test_two_workdirs_are_compared_on_the_cases_that_both_have(tmp_path):
    a = scored(tmp_path / "a", {"m": cases(A)})
    kept = {case: rights for case, rights in cases(B).items() if int(case, 16) < 7}
    b = scored(tmp_path / "b", {"m": {**kept, "f" * 64: [1]}})
    found = _found(a.path, b.path)
    assert found["cases"] == 7
    assert list(found["models"]) == ["a:m", "b:m"]
    assert [model["cases"] for model in found["models"].values()] == [10, 8]
    entry = _entry(found, "accuracy@1")
    assert entry["difference"] == pytest.approx(np.mean(B[:7]) - np.mean(A[:7]))
    values = [model["metrics"]["accuracy@1"]["value"] for model in found["models"].values()]
    assert values == pytest.approx([np.mean(A[:7]), np.mean(B[:7])])


def test_the_p_value_is_that_of_every_pattern_of_signs_and_of_mcnemar(tmp_path):
    workdir = scored(tmp_path, {"a": cases(A), "b": cases(B)})
    entry = _entry(_found(workdir.path), "accuracy@1")
    gaps = [y - x for x, y in zip(A, B, strict=True) if x != y]
    sums = [
        abs(sum(s * g for s, g in zip(signs, gaps, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(gaps))
    ]
    assert entry["p_value"] == pytest.approx(np.mean([total >= abs(sum(gaps)) for total in sums]))
    assert entry["test"].endswith("exact")
    assert entry["mcnemar"] == {
        "only_a": 1,
        "only_b": 4,
        "p_value": pytest.approx(entry["p_value"]),
    }


def test_with_several_samples_there_is_no_mcnemar_test(tmp_path):
    workdir = scored(tmp_path, {"a": cases([[1, 0], [0, 0]]), "b": cases([[1, 1], [0, 1]])})
    found = _found(workdir.path)
    entry = _entry(found, "accuracy@1")
    assert "mcnemar" not in entry and entry["difference"] == 0.5
    assert "mcnemar" not in _entry(found, "reasoning_recall")


def test_the_numbers_of_one_workdir_are_those_of_its_results(tmp_path):
    rng = np.random.default_rng(0)
    models = {n: cases(rng.integers(0, 2, (40, 2)).tolist()) for n in ("a", "b")}
    workdir = scored(tmp_path, models, resamples=10_000)
    ours = {c["metric"]: c for c in _found(workdir.path)["comparisons"]}
    for theirs in workdir.read_json(workdir.results)["comparisons"]:
        assert {name: ours[theirs["metric"]][name] for name in theirs} == theirs


def test_holm_is_over_all_pairs_and_metrics(tmp_path):
    rng = np.random.default_rng(1)
    models = {
        name: cases((rng.random(60) < share).astype(int).tolist())
        for name, share in (("a", 0.3), ("b", 0.5), ("c", 0.8))
    }
    found = _found(scored(tmp_path, models).path)
    raw = [entry["p_value"] for entry in found["comparisons"]]
    assert found["tests"] == len(raw) == 6  # three pairs, accuracy@1 and recall
    assert [entry["p_holm"] for entry in found["comparisons"]] == statistics.holm(raw)
    assert any(entry["p_holm"] > entry["p_value"] for entry in found["comparisons"])


def test_what_is_unresolved_widens_the_bounds_and_is_no_difference(tmp_path):
    workdir = scored(tmp_path, {"a": cases([1, 0, None]), "b": cases([1, 1, 1])})
    entry = _entry(_found(workdir.path), "accuracy@1")
    assert (entry["cases"], entry["difference"]) == (2, 0.5)
    assert (entry["worst"], entry["best"]) == pytest.approx((1 / 3, 2 / 3))


def test_disagreements_name_the_cases_that_one_gets_more_often(tmp_path):
    workdir = scored(
        tmp_path,
        {
            "a": cases([[1, 1], [1, 0], [0, 0], [1, 1]]),
            "b": cases([[0, 0], [1, 1], [0, 0], [1, 0]]),
        },
    )
    (pair,) = _found(workdir.path)["disagreements"]
    names = list(cases([0] * 4))
    assert pair["a_more"] == [
        {"case": names[0], "a": [2, 0, 0], "b": [0, 2, 0]},
        {"case": names[3], "a": [2, 0, 0], "b": [1, 1, 0]},
    ]
    assert pair["b_more"] == [{"case": names[1], "a": [1, 1, 0], "b": [2, 0, 0]}]


def test_models_may_be_named_like_services_and_folders_may_hold_colons(tmp_path):
    made = scored(tmp_path / "x:y", {"openai:o3": cases(A), "hf:models/q": cases(B)})
    assert {m.label for m in chosen([str(made.path)])} == {"hf:models/q", "openai:o3"}
    picked = chosen([f"{made.path}:hf:models/q", f"{made.path}:openai:o3"])
    assert [model.model for model in picked] == ["hf:models/q", "openai:o3"]


def test_models_of_one_name_are_labelled_by_folder_and_then_by_path(tmp_path):
    paths = [tmp_path / "one" / "run", tmp_path / "two" / "run"]
    for path in paths:
        scored(path, {"m": cases(A)})
    labels = [model.label for model in chosen(list(map(str, paths)))]
    assert labels == [f"{path.resolve()}:m" for path in paths]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    scored(folder / "a", {"m": cases(A)})
    scored(folder / "b", {"m": cases(B)})
    scored(folder / "other", {"m": {"e" * 64: [1]}})
    scored(folder / "val", {"m": cases(B)}, data={"split": "val"}, judge={"prompts": {"x": "2"}})
    return folder


@pytest.mark.promise(
    "`mcr compare` refuses models without a common case, and workdirs whose judges, repeats, "
    "prompts, readings or splits differ"
)
@pytest.mark.parametrize(
    ("operands", "status", "words"),
    [
        (["a", "other"], 1, ["no case is common to all", "a:m has 10, other:m has 1"]),
        (["a", "val"], 1, ["split: test (a) and val (val)", "--anyway"]),
        (["a", "gone"], 2, ["gone: there is no such folder"]),
        (["a", "b:x"], 2, ["no model 'x' but m"]),
        (["a"], 2, ["takes two models"]),
        ([], 2, ["name two models"]),
        (["a", "a:m"], 2, ["'m' is named twice"]),
        (["a", "b", "--out=a"], 2, ["a is a folder"]),
        (["a", "gs://bucket/run"], 2, ["not a local folder"]),
        (["a", "b", "--out=gs://bucket/x.html"], 2, ["not a local folder"]),
        (["a", "b", "--jsn=x"], 2, ["unknown flag --jsn; did you mean --json"]),
    ],
)
def test_what_cannot_be_compared_is_one_line(pair, monkeypatch, capsys, operands, status, words):
    monkeypatch.chdir(pair)
    assert main(["compare", *operands]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert not (pair / "compare.html").exists() and not (pair / "gone").exists()


@pytest.mark.promise("`--anyway` prints the differences and compares all the same.")
def test_anyway_prints_the_differences_and_compares(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(pair)
    page = tmp_path / "page.html"
    assert main(["compare", "--anyway", "a", f"--out={page}", "val"]) == 0
    printed = capsys.readouterr().out
    assert "the workdirs differ in split: test (a) and val (val)" in printed
    assert "The workdirs differ in split" in page.read_text()


def test_a_fact_that_only_one_workdir_recorded_is_no_difference(tmp_path):
    scored(tmp_path / "a", {"m": cases(A)}, judge={"prompts": {"x": "1" * 64}})
    scored(tmp_path / "b", {"m": cases(B)})
    models = chosen([str(tmp_path / "a"), str(tmp_path / "b")])
    assert differences(models) == {} and len(common(models)) == len(A)


def test_json_holds_the_numbers_and_nothing_in_the_workdirs_changes(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in pair.rglob("*") if path.is_file()}
    operands = [str(pair / "a"), str(pair / "b")]
    assert main(["compare", *operands, "--json=numbers.json"]) == 0
    assert {path: path.read_bytes() for path in pair.rglob("*") if path.is_file()} == before
    assert json.loads((tmp_path / "numbers.json").read_text()) == _found(*operands)
    assert (tmp_path / "compare.html").exists()


def test_two_files_are_all_that_a_workdir_made_elsewhere_needs(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("results.json", "scores.json"):
            (tmp_path / name / file).write_bytes((pair / name / file).read_bytes())
        (tmp_path / name).chmod(0o555)
    assert main(["compare", "a", "b"]) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "results.json",
        "scores.json",
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        # Another judge also has another identity and other versions: the name says it.
        (
            {
                "judge": {
                    "name": "gemini:x",
                    "identity": "gemini/x",
                    "versions": {"diagnosis": {"x-1": 9}, "reasons": {"x-1": 9}},
                }
            },
            "judge: offline (a) and gemini:x (b)",
        ),
        ({"judge": {"identity": "2"}}, "judge's identity: rules (a) and 2 (b)"),
        (
            {"judge": {"readings": {"diagnosis": "diagnosis/9"}}},
            f"readings of verdicts: {', '.join(f'{k} {v}' for k, v in READINGS.items())} (a) "
            "and diagnosis diagnosis/9 (b)",
        ),
        (
            {"judge": {"prompts": {"judge_diagnosis": "f" * 64}}},
            f"judge's prompts: judge_diagnosis {'0' * 12} (a) and judge_diagnosis {'f' * 12} (b)",
        ),
        (
            {"judge": {"versions": {"diagnosis": {"m-2": 9}, "reasons": {"not reported": 9}}}},
            "judge's version (diagnosis): not reported (a) and m-2 (b)",
        ),
        ({"judge": {"repeat": 3}}, "judge.repeat: 1 (a) and 3 (b)"),
        ({"judge": {"max_tokens": 256}}, "judge.max_tokens: 16384 (a) and 256 (b)"),
        ({"config": {"answer": "strict"}}, "reading of answers: lenient (a) and strict (b)"),
        (
            {"judge": {"repeat": 3, "max_tokens": 256}},
            "judge.repeat: 1 (a) and 3 (b); judge.max_tokens: 16384 (a) and 256 (b)",
        ),
    ],
)
def test_the_refusal_names_each_fact_that_differs_and_nothing_else(
    tmp_path, monkeypatch, capsys, change, line
):
    monkeypatch.chdir(tmp_path)
    facts = {"readings": READINGS, "prompts": {"judge_diagnosis": "0" * 64}, "max_tokens": 16_384}
    for name in ("a", "b"):
        scored(tmp_path / name, {"m": cases(A), "n": cases(B)}, judge=facts)
    path = tmp_path / "b" / "results.json"
    results = json.loads(path.read_text())
    for section, fields in change.items():
        results[section] |= fields
    path.write_text(json.dumps(results))
    assert main(["compare", "a", "b"]) == 1
    begin, end = "mcr compare: these workdirs differ in ", ". --anyway compares all the same\n"
    assert capsys.readouterr().err == f"{begin}{line}{end}"


@pytest.mark.parametrize("named", ["", "small-1+large-2"])
def test_versions_of_a_pair_are_compared_stage_by_stage(tmp_path, named):
    versions = {"diagnosis": {"small-1": 9}, "reasons": {"large-2": 9}}
    for name, version in (("a", named), ("b", "small-1+large-2")):
        path = scored(tmp_path / name, {"m": cases(A)}).results
        results = json.loads(path.read_text())
        results["judge"] |= {"versions": versions, "version": version}
        path.write_text(json.dumps(results))
    assert differences(chosen([str(tmp_path / "a"), str(tmp_path / "b")])) == {}


def test_what_a_file_says_cannot_act_on_the_terminal(tmp_path, capsys):
    for name, identity in (("a", "\x1b[2J one"), ("b", "\x1b]0;two\x07")):
        scored(tmp_path / name, {"m": cases(A)}, judge={"identity": identity})
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"?[2J one ({tmp_path / 'a'})" in line and line.isprintable()
    for file in ("results.json", "scores.json"):
        path = tmp_path / "a" / file
        found = json.loads(path.read_text())
        found["models"]["\x1b[2J"] = found["models"]["m"]
        path.write_text(json.dumps(found))
    assert main(["compare", f"{tmp_path / 'a'}:gone", str(tmp_path / "b")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "?[2J" in line and line.isprintable()


def test_another_prompt_of_the_candidates_is_a_difference(tmp_path):
    scored(tmp_path / "a", {"m": cases(A)}, sample={"prompt": "1" * 64})
    scored(tmp_path / "b", {"m": cases(A)}, sample={"prompt": "2" * 64})
    models = chosen([str(tmp_path / "a"), str(tmp_path / "b")])
    assert list(differences(models)) == ["prompt"]


def test_the_terminal_has_each_models_value_and_every_difference_whole_in_a_pipe(tmp_path):
    letters = "JQWXYZ"  # in no other word of the text
    rng = np.random.default_rng(2)
    models = {letter * 80: cases((rng.random(12) < 0.5).astype(int).tolist()) for letter in letters}
    models[letters[5] * 80] = models[letters[4] * 80]
    made = scored(tmp_path / "w", models)
    command = [sys.executable, "-m", "mcr_jax", "compare", str(made.path), "--json=numbers.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads((tmp_path / "numbers.json").read_text())
    printed = done.stdout[: done.stdout.index("compare: ")]
    assert printed.startswith("12 common cases [95 % interval], judge offline\n")
    assert "…" not in printed and max(map(len, printed.splitlines())) <= 80
    for model in found["models"].values():
        for metric in model["metrics"].values():
            assert f"{metric['value']:.3f}" in printed
            assert f"[{metric['low']:.3f}, {metric['high']:.3f}]" in printed
    for entry in found["comparisons"]:
        shown = f"{entry['difference']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}]"
        assert f"{shown} " in printed and f"{entry['p_holm']:.3f}" in printed
    assert printed.count("equal in all 12 cases") == 2  # accuracy@1 and recall of the last pair
    for letter in letters:  # in the table of models, and in five pairs
        assert printed.count(letter) == 6 * 80


@pytest.mark.parametrize("field", ["recall", "recall_verified", "right", "metrics", "kinds"])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, capsys, field):
    workdir = scored(tmp_path, {"a": cases(A), "b": cases(B)})
    scores = workdir.read_json(workdir.scores)
    scores["models"]["a"]["0" * 64][field] = {"x": 2}
    workdir.scores.write_text(json.dumps(scores))
    assert main(["compare", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "scores.json" in line and field in line
