"""Layout of the package: entry points of stages, file names, private names, docstrings."""

import ast
import collections
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mcr_jax"
FILES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
DOCUMENTED = [PACKAGE, PACKAGE.parent / "bench", PACKAGE.parent / "setup.py"]
NO_VERB_OR_NOUN = (
    *("What", "Where", "How", "Of", "As", "Whether", "So"),
    *("That", "Which", "When", "Who", "Why", "If", "Such"),
)
STAGES = ("build", "stitch", "train", "sample", "judge", "score", "report")


def imports(tree):
    """Pairs of module and name for each `from mcr_jax... import name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mcr_jax"):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_opens_at_stage_py_with_run_of_an_experiment(stage):
    tree = FILES[PACKAGE / stage / "stage.py"]
    (run,) = (node for node in tree.body if getattr(node, "name", "") == "run")
    assert run.args.args[0].annotation.id == "Experiment"


def test_no_two_files_have_one_name():
    """But those that the layout names alike, and commands, which have the names of their stages."""
    names = collections.Counter(
        path.name
        for path in FILES
        if path.name not in ("__init__.py", "stage.py") and path.parent.name != "cli"
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_nothing_private_is_used_outside_its_folder():
    found = []
    for path, tree in FILES.items():
        here = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
        for module, name in imports(tree):
            words = f"{module}.{name}".split(".")
            private = [i for i, word in enumerate(words) if word[0] == "_" and word[:2] != "__"]
            owner = ".".join(words[: private[0]]) if private else ""
            # A private module is its folder's; a private name of a module is that module's.
            if private and owner != here:
                found.append(f"{path.relative_to(PACKAGE)}: {module}.{name}")
    assert found == []


def test_no_file_of_python_is_longer_than_the_design_allows():
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    assert {path.name: length for path, length in lengths.items() if length > 400} == {}


def test_a_docstring_starts_with_a_verb_or_a_noun():
    """Failures list each other docstring as FILE:LINE and its first line."""
    files = [path for place in DOCUMENTED for path in (sorted(place.rglob("*.py")) or [place])]
    kinds, found = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            text = isinstance(node, kinds) and ast.get_docstring(node)
            if text and re.match(r"\W*(\w*)", text)[1] in NO_VERB_OR_NOUN:
                place = f"{path.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 1)}"
                found.append(f"{place} {text.splitlines()[0]}")
    assert not found, "\n".join(found)
