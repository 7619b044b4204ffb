"""Templates give transformers' own text and ids, and nothing in one reaches beyond its sandbox."""

import datetime
import json
import pathlib

import pytest
from chat_cases import CONFIGS, CONVERSATIONS, TEMPLATE_OPTIONS, TODAY, tokenizer_json

from mcr_jax.errors import McrError
from mcr_jax.text.chat_template import ChatTemplate
from mcr_jax.text.tokenizer_json import TokenizerJson

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden/chat.json").read_text("utf-8"))
NOW = datetime.datetime(*TODAY)
ASKED = CONVERSATIONS["asked"]


def template(source, **variables):
    return ChatTemplate(source, "some/chat_template.jinja", variables, NOW)


def of_config(name, **options):
    config = CONFIGS[name]
    source = config["chat_template"]
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}["default"]
    tokens = {key: config.get(key) for key in ("bos_token", "eos_token")}
    tokens = {k: v["content"] if isinstance(v, dict) else v for k, v in tokens.items() if v}
    return template(source, **tokens, **options)


@pytest.fixture(scope="module")
def pieces():
    return TokenizerJson(tokenizer_json().encode(), "tokenizer.json")


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("kind", ["prompt", "whole"])
@pytest.mark.parametrize("name", [*CONFIGS, *(f"{name} with options" for name in TEMPLATE_OPTIONS)])
def test_text_and_ids_are_those_of_transformers(pieces, name, kind, conversation):
    base = name.removesuffix(" with options")
    chat = of_config(base, **(TEMPLATE_OPTIONS[base] if name != base else {}))
    expected = GOLDEN[name][conversation][kind]
    if "error" in expected:
        with pytest.raises(McrError, match=expected["error"]):
            chat.render(CONVERSATIONS[conversation], add_generation_prompt=kind == "prompt")
        return
    text = chat.render(CONVERSATIONS[conversation], add_generation_prompt=kind == "prompt")
    assert text == expected["text"]
    assert pieces.encode(text) == expected["ids"]


def test_the_golden_file_holds_every_case():
    made = {*CONFIGS, *(f"{name} with options" for name in TEMPLATE_OPTIONS), "deepseek"}
    assert set(GOLDEN) == made
    assert all(set(cases) == set(CONVERSATIONS) for cases in GOLDEN.values())


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__self__ }}",
        "{{ namespace(__html__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
    ],
)
def test_what_reaches_for_python_is_refused_or_empty(source):
    try:
        text = template(source).render(ASKED, add_generation_prompt=True)
    except McrError as error:
        assert str(error).startswith("some/chat_template.jinja: the chat template fails: ")
    else:
        assert text == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('No\\n such role.') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].content.nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ none[0][1] }}",
        "{{ messages | tojson(indent='x' ~ 1, sort_keys=1, nothing=2) }}",
        "{% break %}",
    ],
)
def test_a_template_that_fails_is_one_line(source):
    with pytest.raises(McrError, match=r"^some/chat_template.jinja: .*\S$") as refused:
        template(source).render(ASKED, add_generation_prompt=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("source", ["{% if %}", "{{ 'open", "{% generation %}", "{% nothing %}"])
def test_what_is_no_template_is_refused_when_read(source):
    with pytest.raises(McrError, match=r"^some/chat_template.jinja: not a chat template: .+$"):
        template(source)


def test_a_message_is_never_read_as_a_template():
    content = "{{ 1 + 1 }} {% if %} {# gone? #}"
    echo = template("{{ messages[0].content }}")
    assert (
        echo.render([{"role": "user", "content": content}], add_generation_prompt=True) == content
    )


def test_the_time_is_the_one_that_was_given_however_late_it_is():
    clock = template("{{ strftime_now('%Y-%m-%d %H:%M:%S') }}")
    assert {clock.render(ASKED, add_generation_prompt=True) for _ in range(3)} == {
        "2031-07-04 00:00:00"
    }


def test_literals_are_all_that_is_written_in_a_template():
    made = template("<a>{{ '<b>' + x }}{% if y == '<c>' %}<d>{% endif %}{# <e> #}")
    assert {"<a>", "<b>", "<c>", "<d>"} <= set(made.literals)
    assert not any("<e>" in text for text in made.literals)
