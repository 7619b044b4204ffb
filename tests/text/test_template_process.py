"""No template uses all memory or runs for ever, and no process is left behind or out of step."""

import concurrent.futures
import contextlib
import datetime
import functools
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading

import pytest

from mcr_jax.errors import McrError
from mcr_jax.text.chat_template import LONGEST_SOURCE, ChatTemplate
from mcr_jax.text.template_process import Limits, TemplateProcess

NOW = datetime.datetime(2031, 7, 4)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{%% set ns = namespace(x=%s) %%}{%% for i in range(99) %%}{%% set ns.x = %s %%}{%% endfor %%}"
)

HUGE_WHEN_RENDERED = {
    "a width": "{{ '%3000000000d'|format(1)|length }}",
    "a width of %": "{{ ('%*d' % (2000000000, 1))|length }}",
    "a width of a method": "{{ '{:>3000000000}'.format(1)|length }}",
    "a centred text": "{{ 'x'|center(3000000000)|length }}",
    "zeros": "{{ 'x'.zfill(3000000000)|length }}",
    "tabs": "{{ '\t'.expandtabs(2000000000)|length }}",
    "an indented text": "{{ ('a\n' * 9999)|indent(9999999)|length }}",
    "indented JSON": "{{ [[1]]|tojson(indent=3000000000)|length }}",
    "a product": "{{ 'a' * 1000000000000 }}",
    "a product turned round": "{{ 1000000000000 * 'a' }}",
    "a repeated list": "{{ [0] * 1000000000000 }}",
    "a replacement": "{{ ('a' * 99999)|replace('a', 'a' * 99999)|length }}",
    "a joined list": "{{ range(99999)|join('x' * 99999)|length }}",
    "a wrapped text": "{{ ('a ' * 999999)|wordwrap(1, wrapstring='x' * 99999)|length }}",
    "a filled batch": "{{ [1]|batch(3000000000, 1)|list|length }}",
    "a doubled text": DOUBLED % ("'a'", "ns.x ~ ns.x"),
    "a doubled list": DOUBLED % ("[1]", "ns.x + ns.x"),
    "a squared number": DOUBLED % ("99999999", "ns.x * ns.x"),
    "a power": "{{ 9 ** 9 ** 9 }}",
    "nested lists": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}"
    "{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson }}",
    "many lists": "{% set ns = namespace(x=()) %}{% for i in range(99999) %}"
    "{% for j in range(99) %}{% set ns.x = (ns.x, j) %}{% endfor %}{% endfor %}",
    "nested loops": ENDLESS,
    "a long range": "{% for i in range(1000000000) %}{% endfor %}",
    "sums": "{% for i in range(99999) %}{{ range(99999)|sum }}{% endfor %}",
    "slices": "{{ messages|slice(3000000000)|list|length }}",
    "filler": "{{ lipsum(99999999)|length }}",
    "a macro in itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro twice in itself": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}"
    "{% endif %}{% endmacro %}{{ f(60) }}",
    "a block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "an output": "{% for i in range(99999) %}{{ 'x' * 9999999 }}{% endfor %}",
    "an output that is kept": "{% set x %}{% for i in range(99999) %}{{ 'x' * 9999999 }}"
    "{% endfor %}{% endset %}",
}
HUGE_WHEN_COMPILED = {
    "a long file": "x" * 10_000_000,
    "lists": f"{{{{ {'[' * 50_000}{']' * 50_000} }}}}",
    "parentheses": f"{{{{ {'(' * 50_000}1{')' * 50_000} }}}}",
    "signs": f"{{{{ {'-' * 100_000}1 }}}}",
    "attributes": f"{{{{ x{'.a' * 20_000} }}}}",
    "conditions": "{% if 1 %}" * 10_000 + "{% endif %}" * 10_000,
    "loops in loops": "{% for x in y %}" * 50 + "{% endfor %}" * 50,
    "comments": "{#" * 100_000,
    "a filter of constants": "{{ [1]|slice(3000000000)|list|length }}",
    "a number": f"{{{{ {'9' * 100_000} }}}}",
}


@pytest.fixture(scope="module")
def process():
    made = TemplateProcess(Limits(memory_mb=128, processor_s=0.15))
    yield made
    made.close()


def echo(process, before=""):
    return ChatTemplate(before + "{{ messages[0].content }}", "some/echo.jinja", {}, NOW, process)


def said(template, text="Frost."):
    return template.render([{"role": "user", "content": text}], add_generation_prompt=True)


def has_ended(pid, seconds=60):
    """Whether the process, which need not be a child, ends within that time."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watched], [], [], seconds)[0])
    finally:
        os.close(watched)


@pytest.mark.promise(
    "A downloaded chat template runs in a process of its own, with limits of memory and time."
)
@pytest.mark.parametrize("source", HUGE_WHEN_RENDERED.values(), ids=HUGE_WHEN_RENDERED)
def test_a_template_that_grows_is_one_line_and_the_next_one_is_served(process, source):
    honest = echo(process)
    with pytest.raises(McrError) as refused:
        said(ChatTemplate(source, "some/chat_template.jinja", {}, NOW, process))
    assert str(refused.value).startswith("some/chat_template.jinja: the chat template fails: ")
    assert "\n" not in str(refused.value)
    assert said(honest) == "Frost."


@pytest.mark.parametrize("source", HUGE_WHEN_COMPILED.values(), ids=HUGE_WHEN_COMPILED)
def test_a_template_that_cannot_be_compiled_is_one_line_and_the_next_one_is_served(process, source):
    honest = echo(process)
    with pytest.raises(McrError, match=r"^some/chat_template.jinja: not a chat template: ") as line:
        ChatTemplate(source, "some/chat_template.jinja", {}, NOW, process)
    assert "\n" not in str(line.value)
    assert said(honest) == "Frost."


@pytest.mark.parametrize(
    ("limits", "source", "said_of_it"),
    [
        (Limits(processor_s=0.1), ENDLESS, "more than 0.1 seconds of processor time"),
        (Limits(wall_s=0.5), ENDLESS, "more than 0.5 seconds"),
        (Limits(), HUGE_WHEN_RENDERED["a width"], "more than 512 MB of memory"),
        (Limits(), "{{ 'x' * 16777217 }}", "more than 16777216 characters or items"),
    ],
)
def test_the_line_names_the_limit(limits, source, said_of_it):
    with contextlib.closing(TemplateProcess(limits)) as process:
        template = ChatTemplate(source, "some/chat_template.jinja", {}, NOW, process)
        with pytest.raises(McrError, match=f"fails: it (takes|makes) {said_of_it}$"):
            said(template)


def test_what_is_within_the_limits_is_whole(process):
    text = "é😀\ud800\x00\u2028" * 100_000
    assert said(echo(process), text) == text
    assert said(echo(process, "{# " + "x" * (LONGEST_SOURCE - 100) + " #}")) == "Frost."


def test_a_long_message_of_an_error_is_cut_and_steers_no_terminal(process):
    loud = ChatTemplate("{{ raise_exception('\x1b[2J' ~ 'x' * 9999) }}", "loud", {}, NOW, process)
    with pytest.raises(McrError, match=r"^loud: the chat template fails: \[2Jx{900,1000}…$"):
        said(loud)


def test_a_process_that_was_ended_from_outside_is_replaced(process):
    template = echo(process)
    first = process.pid
    os.kill(first, signal.SIGKILL)
    assert said(template) == "Frost."
    assert process.pid != first and has_ended(first)


def test_more_templates_than_are_held_keep_their_own_text(process):
    templates = [echo(process, f"{i}: ") for i in range(40)]
    for _ in range(2):
        assert [said(t) for t in templates] == [f"{i}: Frost." for i in range(40)]


def test_threads_get_their_own_text_while_a_template_fails_beside_them(process):
    template = echo(process)
    bad = ChatTemplate(HUGE_WHEN_RENDERED["zeros"], "bad", {}, NOW, process)

    def work(i):
        if i % 50 == 25:
            with pytest.raises(McrError, match=r"^bad: .* of memory$"):
                said(bad)
        return said(template, f"case {i}")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(200))) == [f"case {i}" for i in range(200)]


def test_after_an_interrupt_no_late_reply_is_taken_for_the_next_ones():
    class Interrupted(Exception):
        pass

    def interrupt(*_):
        raise Interrupted

    slow = "{% for m in messages if m.content == 'slow' %}" + ENDLESS + "{% endfor %}"
    send = functools.partial(signal.pthread_kill, threading.get_ident(), signal.SIGUSR1)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with contextlib.closing(TemplateProcess()) as process:
            template, first = echo(process, slow), process.pid
            with pytest.raises(Interrupted):
                threading.Timer(0.1, send).start()
                said(template, "slow")
            assert has_ended(first)
            assert said(template) == "Frost."
    finally:
        signal.signal(signal.SIGUSR1, before)


RUN = f"""
import os, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
from test_template_process import echo, said
from mcr_jax.text.template_process import SHARED
said(echo(SHARED))
assert "jinja2" not in sys.modules  # what reads templates is in the other process alone
print(SHARED.pid, os.getsid(SHARED.pid), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches a process by Linux's pidfd")
@pytest.mark.parametrize("end", ["pass", "sys.stdin.read()", "os._exit(0)"])
def test_the_process_ends_with_its_parent_however_that_ends(end):
    with subprocess.Popen(
        [sys.executable, "-c", RUN + end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        pid, session = map(int, parent.stdout.readline().split())
        assert session == pid  # Ctrl-C at a terminal does not come to it
        if "stdin" in end:
            assert not has_ended(pid, 0)
            parent.kill()
        assert has_ended(pid)
        assert parent.stderr.read() == ""
