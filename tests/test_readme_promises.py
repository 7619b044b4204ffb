"""Sentences of README and docs/ about errors, kills and exit statuses have tests that name them.

A test names a sentence by `@pytest.mark.promise("sentence")`. Fails for a name that is no sentence
of the pages, and for such a sentence without a test.
"""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
# Words of sentences that promise such behaviour.
_PROMISING = re.compile(
    r"status|kill -9|killed|SIGTERM|one line|refuse|does nothing|set aside|requests? .*again"
    r"|resumes|may resume|half-prep|twice|never requested|never counted|cut off|waits up to|pooled"
)
_SENTENCE_END = re.compile(r"(?<=[.:;])\s+(?=[A-Z`*\[-])")


def _plain(text: str) -> str:
    return " ".join(text.split())


def _pages() -> str:
    """Returns README and all pages as one text."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n\n".join(page.read_text(encoding="utf-8") for page in pages)


def _sentences() -> list[str]:
    """Returns the sentences, without code blocks, headings and tables."""
    text = re.sub(r"(?ms)^```.*?^```$", "\n\n", _pages())
    text = re.sub(r"(?m)^( {4}|\||#).*$", "\n\n", text)
    parts = re.split(r"\n\s*\n|\n(?=- )", text)
    return [_plain(s) for part in parts for s in _SENTENCE_END.split(part) if s.strip()]


def _promises() -> dict[str, str]:
    """Returns the sentences that tests name, each with its test."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "mark.promise" not in (source := path.read_text(encoding="utf-8")):
            continue
        for node in ast.walk(ast.parse(source)):
            for mark in getattr(node, "decorator_list", ()):
                if ast.unparse(mark).startswith("pytest.mark.promise("):
                    found[_plain(ast.literal_eval(mark.args[0]))] = f"{path.name}::{node.name}"
    return found


def test_every_sentence_that_a_test_names_is_written():
    readme = _plain(_pages())
    promises = _promises()
    assert len(promises) > 40
    assert {s: test for s, test in promises.items() if s not in readme} == {}


def test_every_promise_is_named_by_a_test():
    promises = _promises()
    promising = [s for s in _sentences() if _PROMISING.search(s)]
    assert len(promising) > 20
    assert [s for s in promising if not any(p in s or s in p for p in promises)] == []
