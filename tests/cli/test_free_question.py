"""A refused key and an unknown model are reported before the first paid call."""

import socket

import pytest

from mcr_jax.errors import McrError
from mcr_jax.generate import free_question

CANDIDATE = {"model.folder": "", "data.eval_cases": 1, "sample.n": 1, "judge.patience": 0.01}


def services(who, kind):
    """Returns the fields in which `who` is the service `kind` and the other one is the other."""
    models = {"openai": "openai:m", "gemini": "gemini:gemini-2.5-flash"}
    (other,) = models.keys() - {kind}
    names = {"candidate": (kind, other), "judge": (other, kind)}[who]
    sampled, judged = (models[name] for name in names)
    return {**CANDIDATE, "sample.models": f"o={sampled}", "judge.models": judged}


@pytest.mark.promise("A missing or refused key")
@pytest.mark.promise("A judge that cannot be called is one line before the first completion")
@pytest.mark.parametrize("who", ["candidate", "judge"])
@pytest.mark.parametrize(
    ("kind", "code", "message", "words"),
    [
        ("openai", 401, "Incorrect API key provided: {key}", ["OPENAI_API_KEY", "[key]"]),
        ("openai", 403, "Country not supported", ["OPENAI_API_KEY", "Country"]),
        ("gemini", 400, "API key not valid. {key}", ["GEMINI_API_KEY", "[key]"]),
        ("gemini", 403, "No access", ["GEMINI_API_KEY", "No access"]),
    ],
)
def test_a_refused_key_is_one_line_before_anything_is_paid(
    call, openai, gemini, capsys, who, kind, code, message, words
):
    server = {"openai": openai, "gemini": gemini}[kind]
    server.refuses_key = server.error(code, message.format(key=server.key))
    status, (line,) = call("eval", **services(who, kind))
    assert status == 1 and all(word in line for word in words), line
    assert server.key not in line + capsys.readouterr().out
    assert not openai.calls and not gemini.calls


def test_a_server_that_lists_the_model_or_a_key_for_calls_only_stops_nothing(call, openai, gemini):
    gemini.models = ["gemini-2.5-flash"]
    openai.refuses_key = openai.error(403, "Missing scopes: api.model.read")
    openai._take = lambda call: openai.says("<answer>x</answer>")
    assert call("sample", **services("candidate", "openai")) == (0, [])
    assert call("judge", **services("candidate", "openai")) == (0, [])
    assert [path.partition("?")[0] for path in gemini.asked] == ["/v1beta/models/gemini-2.5-flash"]
    assert openai.asked == ["/v1/models/m"]  # once, although each reply has the notice


def test_a_service_that_does_not_answer_is_said_before_the_first_completion(
    call, openai, monkeypatch, capsys
):
    with socket.socket() as closed:  # bound and not listening
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        lines, original = [], openai._take

        def take(made):
            lines.append(capsys.readouterr().out)
            return original(made)

        openai._take = take
        fields = {"endpoints": f"far={url}", "judge.models": "far:m", "sample.models": "openai:m"}
        status, (line,) = call("eval", **(CANDIDATE | fields))
    assert status == 1 and "no answer for" in line
    assert f"judge: {url} does not answer (ConnectError" in lines[0]


def test_where_nothing_is_open_no_service_is_asked(call, openai):
    fields = {**CANDIDATE, "sample.models": "o=openai:m", "judge.models": "openai:j"}
    assert call("sample", **fields) == call("judge", **fields) == (0, [])
    openai.asked.clear()
    assert call("sample", **fields) == call("judge", **fields) == (0, [])
    assert openai.asked == []


@pytest.mark.parametrize("kind", ["openai", "gemini"])
def test_a_server_that_does_not_list_the_model_is_named_and_asked_all_the_same(
    call, openai, gemini, kind
):
    server = {"openai": openai, "gemini": gemini}[kind]
    server.models = ["m-mini", "gemini-2.5-flash-lite"]
    assert call("sample", **services("candidate", kind))[0] == 0
    name = services("candidate", kind)["sample.models"].rpartition(":")[2]
    assert f"{server.url} does not list the model {name}, but " in call.out
    assert server.calls


@pytest.mark.parametrize(
    ("listed", "official", "line"),
    [
        ([], True, None),
        (["n", None], True, None),
        (["m"], True, ""),
        ([], False, ""),
        (["m"], False, ""),
        (["n", 3], False, "W does not list the model m, but n"),
    ],
)
def test_only_the_service_itself_is_believed_that_it_has_no_model(listed, official, line):
    def ask():
        return free_question.unlisted("m", listed, official=official, where="W", said="HTTP 404")

    if line is None:
        with pytest.raises(McrError, match=r"^W has no model m \(HTTP 404\)"):
            ask()
    else:
        assert ask() == line
