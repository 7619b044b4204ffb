"""`mcr compare` after `mcr eval`, with the dataset at hand."""

import json

from mcr_jax.cli.main import main


def test_the_page_names_the_diagnosis_of_a_case_where_two_models_disagree(
    call, tmp_path, clinic_cases, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    models = []
    for name, right in (("good", True), ("bad", False)):
        lines = [
            {
                "case": case.fingerprint,
                "reasoning": "It hums.",
                "answer": case.final_diagnosis if right else "Nothing at all",
            }
            for case in clinic_cases["test"]
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        models.append(f"{name}=file:{path}")
    fields = {"data.eval_cases": 0, "sample.n": 1, "score.resamples": 100}
    assert call("eval", "one", **fields, **{"sample.models": models[0]}) == (0, [])
    assert call("eval", "two", **fields, **{"sample.models": ",".join(models)}) == (0, [])
    capsys.readouterr()
    assert main(["compare", "two:bad", "--json=n.json", "one"]) == 0
    assert "good − bad" in capsys.readouterr().out
    found = json.loads((tmp_path / "n.json").read_text())
    entry = found["comparisons"][0]
    assert (entry["a"], entry["b"], entry["difference"]) == ("bad", "good", 1.0)
    assert entry["mcnemar"]["p_value"] == entry["p_value"] == 0.125
    html = (tmp_path / "compare.html").read_text(encoding="utf-8")
    for case in clinic_cases["test"]:
        assert case.final_diagnosis in html and case.pmcid in html
    assert "The cases are fictional" not in html  # the config calls them published ones
