"""`mcr bridge` on a workdir that two real judges have judged."""

import json

from mcr_jax.cli.main import main


def _listing(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_two_real_judges_of_one_workdir(call, tmp_path, openai, clinic_cases, capsys):
    cases = clinic_cases["test"]
    made = tmp_path / "made.jsonl"
    made.write_text(
        "".join(
            json.dumps({"case": c.pmcid, "reasoning": " ".join(c.statements), "answer": answer})
            + "\n"
            for c in cases
            for answer in (c.final_diagnosis, f"{c.final_diagnosis}.")
        )
    )
    fields = {"sample.models": f"made=file:{made}", "data.eval_cases": 0}
    workdir = tmp_path / "w"
    assert call("eval", workdir, **fields) == (0, [])
    capsys.readouterr()
    judge = ("--config.judge.name=openai", "--config.judge.model=m")
    assert main(["judge", f"--workdir={workdir}", *judge]) == 0
    assert "the headline judge is now openai:m; " in capsys.readouterr().out
    assert main(["verify", f"--workdir={workdir}"]) == 1
    assert "is of judge offline, and the config now names judge openai:m" in capsys.readouterr().err
    before = _listing(workdir)
    out = tmp_path / "bridge.json"
    capsys.readouterr()
    assert main(["bridge", f"--workdir={workdir}"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "offline: diagnosis of made; reasons of made",
        "openai:m: diagnosis of made; reasons of made",
        "bridge: name two of them: --judges=FIRST,SECOND",
    ]
    command = ["bridge", "--judges=openai:m,offline", f"--workdir={workdir}", f"--json={out}"]
    assert main(command) == 0
    assert _listing(workdir) == before
    assert "first: yes" in capsys.readouterr().out
    found = json.loads(out.read_text())["stages"]
    # The server compares letter by letter, the rules of the offline judge do not.
    assert found["diagnosis"]["all"]["confusion"] == {
        "both": 4,
        "first_only": 0,
        "second_only": 4,
        "neither": 0,
    }
    assert set(found) == {"diagnosis", "reasons"}
    pair = (
        "diagnosis:openai:m+reasons:openai:m"  # the same models by a SPEC and by a name of its own
    )
    for judges in (f"{pair},offline", "second=openai:m,offline"):
        with_name = [*command[:1], f"--judges={judges}", *command[2:]]
        assert main([*with_name, "--config.judge.models=offline,openai:m"]) == 0
        assert json.loads(out.read_text())["stages"] == found
    for judges, words in (
        (f"{pair},openai:m", "both are judge openai:m of the ledger"),
        ("offline", "takes two different judges"),
        ("offline,offline", "takes two different judges"),
        ("offline,gemini:gone", "no verdicts of judge 'gemini:gone'; there are offline, openai:m"),
    ):
        assert main(["bridge", f"--judges={judges}", f"--workdir={workdir}"]) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert main(["bridge", f"--workdir={workdir}", f"--json={out}"]) == 2
    assert "takes --judges=FIRST,SECOND too" in capsys.readouterr().err
    assert main(["bridge", "--judges=a,b", f"--workdir={tmp_path / 'gone'}"]) == 2
    assert not (tmp_path / "gone").exists()
