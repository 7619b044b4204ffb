"""`mcr sample` and `mcr judge` print what services say of their models, and keep it."""

import datetime
import json

import pytest

from mcr_jax.cli.main import main
from mcr_jax.completion import render


@pytest.mark.promise("print the notice, with a warning from 90 days before that date on")
@pytest.mark.promise("keep a judge's as `status`")
@pytest.mark.promise("A model reported under another name than the one asked for")
def test_shutdowns_and_other_names_are_printed_and_those_of_judges_kept(
    tmp_path, openai, clinic_data, clinic_cases, capsys
):
    soon = datetime.date.today() + datetime.timedelta(days=30)
    openai.shutdown_date = soon.isoformat()
    case = clinic_cases["test"][0]
    openai.then(openai.says(render(case.statements[0], case.final_diagnosis)))
    fields = {
        "data.data_dir": clinic_data,
        "data.eval_cases": 1,
        "sample.n": 1,
        "sample.models": "c=openai:cand",
        "judge.models": "openai:jj",
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    flags = ["--config=eval", f"--workdir={tmp_path}", *flags]

    def said(command):
        assert main([command, *flags]) == 0
        return capsys.readouterr().out

    sampled, judged = said("sample"), said("judge")
    for name, model, out in (("c", "cand", sampled), ("openai:jj", "jj", judged)):
        assert f"the service says of {name}: shuts down {soon}" in out
        assert f"warning: {name} shuts down on {soon}, in 30 days" in out
        assert f"{name} was asked for {model}, and the service reports loopback-1" in out
    said("score")
    manifest, results = (
        json.loads((tmp_path / name).read_text()) for name in ("manifest.json", "results.json")
    )
    status = {"openai:jj": f"shuts down {soon}"}
    assert manifest["judge"]["status"] == results["judge"]["status"] == status
    calls = len(openai.calls)
    assert "warning: openai:jj" in said("judge") and len(openai.calls) == calls
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    assert main(["verify", f"--workdir={tmp_path}"]) == 0
