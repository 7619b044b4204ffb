r"""Completions, `<think> trace </think><answer> diagnosis </answer>`, parsed by named rules.

In: a completion's text. Out: its trace and its answer, with the name of the rule that read it.

A chat template may write the opening `<think>`, which the completion then lacks, and thoughts may
mention `<answer>`. So the answer is read from the text after the last `</think>`, if there is one.

Two modes, `config.score.answer`. Strict: exactly one non-empty pair of `<answer>` tags. Lenient: if
that fails, the other `RULES` in their order. Two different answers are no answer.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from mcr_jax.quotes import normal

MODES = ("lenient", "strict")
RULES = {  # name to meaning
    "strict": "one pair of <answer> tags",
    "tags": "tags in another case, or with spaces",
    "unclosed": "no closing tag",
    "repeated": "the same answer repeated",
    "boxed": "in \\boxed{…}",
    "line": "on a line “Final answer: …”",
}

_THOUGHTS_END = "</think>"
_THOUGHTS_BEGIN = re.compile(r"\s*<think>")
_STRICT = re.compile(r"<(/?)answer>")
_TAG = re.compile(r"<\s{0,8}(/?)\s{0,8}answer\s{0,8}>", re.IGNORECASE)
_HALF_TAG = re.compile(r"<\s{0,8}/\s{0,8}[a-z]{0,6}\Z", re.IGNORECASE)  # closing tag, cut off
_BOXED = "\\boxed{"
_MAX_CHARS = 300  # of an answer that is not between tags
_LABEL = re.compile(
    r"(?:(?:my|the)\s+)?(?:final\s+answer|answer|(?:(?:final|most\s+likely)\s+)?diagnosis)"
    r"(?:\s+is)?[\s*_]*[:：]\s*(.*)",
    re.IGNORECASE,
)
_MARKS = "*_`~#> \t"  # Markdown's, around a line or an answer
_RULE = "-=\n"  # with `_MARKS`: characters of a closing line without a word
_LATEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\{([^{}]*)\}")


@dataclasses.dataclass(frozen=True)
class Completion:
    """A parsed completion.

    Attributes:
      trace: the reasoning, stripped; the same in every mode.
      answer: the diagnosis, stripped; None unless there is exactly one.
      rule: which of `RULES` read the answer; None without an answer.
    """

    trace: str
    answer: str | None
    rule: str | None = None


class _Answer(NamedTuple):
    rule: str
    text: str


def parse(text: str, mode: str = "lenient", *, ended: bool = True) -> Completion:
    """Reads any text, well-formed or not, in time linear in its length; never raises.

    Args:
      text: of the completion.
      mode: "lenient" or "strict".
      ended: whether the model ended by itself. In a text that was cut off only a strict answer
        counts, since any other may be cut too, and only after closed thoughts.
    """
    thoughts, closed, said = text.rpartition(_THOUGHTS_END)
    found, end = _read(said)
    first, *others = thoughts.split(_THOUGHTS_END)
    blocks = [_opened(first), *(part for block in others for part in block.split("<think>", 1))]
    trace = "\n".join(filter(None, map(str.strip, blocks)))
    if not trace:  # no thoughts, or empty ones: the reasoning stands before the answer
        trace = _opened(said[:end]).strip()
    cut_off = not ended and (
        (found is not None and found.rule != "strict")
        or (not closed and _THOUGHTS_BEGIN.match(said) is not None)
    )
    if found is None or cut_off or (mode == "strict" and found.rule != "strict"):
        return Completion(trace, None)
    return Completion(trace, found.text, found.rule)


def after_thoughts(text: str) -> str:
    """Returns the text after its leading blocks of thoughts; all of it without such blocks.

    A block that holds a `<think>` of its own is not a leading block.
    """
    thoughts, _, said = text.rpartition(_THOUGHTS_END)
    blocks = thoughts.split(_THOUGHTS_END)
    return said if all("<think>" not in _opened(block) for block in blocks) else text


def render(trace: str, answer: str) -> str:
    """Returns the text that a model is trained to write; `parse` reads both back."""
    return f"<think>\n{trace}\n</think>\n<answer>{answer}</answer>"


def with_thoughts(thoughts: str, said: str) -> str:
    """Returns a completion whose reasoning came apart from its text; not closed without text."""
    if not thoughts.strip():
        return said
    return f"<think>\n{thoughts}\n</think>\n{said}" if said else f"<think>\n{thoughts}"


def _opened(block: str) -> str:
    """Removes the opening tag from a block of thoughts, if it is there."""
    opened = _THOUGHTS_BEGIN.match(block)
    return block[opened.end() :] if opened else block


def _read(said: str) -> tuple[_Answer | None, int]:
    """Reads the text after the thoughts: the answer, and where the reasoning before it ends."""
    tags = list(_TAG.finditer(said))
    if strict := _strict(said):
        return _Answer("strict", strict), said.index("<answer>")
    end = next((tag.start() for tag in tags if not tag[1]), len(said))
    if given := list(_tagged(said, tags)):
        return _agreed(given), end
    boxed = list(_boxed(said))
    lines = list(_labelled(said))
    if not boxed and not (lines and lines[-1][2]):
        return None, end
    given = [answer for answer, *_ in (*boxed, *lines)]
    begin = min(start for _, start, closes in (*boxed, *lines[-1:]) if closes)
    return _agreed(given), min(end, begin)


def _strict(said: str) -> str:
    """Returns the text between the only opening and the only closing tag; "" otherwise."""
    pairs, opened = [], None
    for tag in _STRICT.finditer(said):
        if tag[1] and opened is not None:
            pairs.append(said[opened : tag.start()])
            opened = None
        elif not tag[1] and opened is None:
            opened = tag.end()
    return pairs[0].strip() if len(pairs) == 1 and "<answer>" not in pairs[0] else ""


def _tagged(said: str, tags: list[re.Match[str]]) -> Iterator[_Answer]:
    """Yields the text after each opening tag, up to the next tag or the end."""
    for tag, following in itertools.zip_longest(tags, tags[1:]):
        if tag[1]:
            continue
        inside = said[tag.end() : following.start() if following else len(said)].strip()
        inside = inside if following else _HALF_TAG.sub("", inside)
        if not (text := _plain(inside)):
            continue
        if following:
            yield _Answer("tags", text)
        elif len(text) <= _MAX_CHARS and not re.search(r"\n\s*\n", inside):
            yield _Answer("unclosed", text)


def _boxed(said: str) -> Iterator[tuple[_Answer, int, bool]]:
    """Yields the content of each \\boxed{...}, where that begins, and True."""
    at = said.find(_BOXED)
    while at >= 0:
        begin = at + len(_BOXED)
        depth = 1
        for place in range(begin, min(begin + _MAX_CHARS, len(said))):
            depth += {"{": 1, "}": -1}.get(said[place], 0)
            if not depth:
                if text := _plain(_LATEX.sub(r"\1", said[begin:place])):
                    yield _Answer("boxed", text), at, True
                break
        at = said.find(_BOXED, begin)


def _labelled(said: str) -> Iterator[tuple[_Answer, int, bool]]:
    """Yields each answer after a label, its offset, and whether it ends the text.

    The answer stands on the label's line, or on the next line if that is the last.
    """
    place, label = 0, -1  # offset of a label without an answer on the line before; -1 for none
    closing = len(said.rstrip().rstrip(_MARKS + _RULE))
    for line in said.splitlines(keepends=True):
        start, place = place, place + len(line)
        text = line.strip().strip(_MARKS)
        if not text:
            continue
        match = _LABEL.match(text)
        answer, begin = (match[1], start) if match else (text if label >= 0 else "", label)
        label = start if match and not _plain(match[1]) else -1
        closes = place >= closing
        if _BOXED in answer or not (match or closes):  # `_boxed` reads a box
            continue
        if (answer := _plain(answer)) and len(answer) <= _MAX_CHARS:
            yield _Answer("line", answer), begin, closes


def _agreed(given: list[_Answer]) -> _Answer | None:
    """Returns the one answer that all of `given` agree on; None if they differ."""
    if len({normal(answer.text).strip(_MARKS + ".,;:!") for answer in given}) > 1:
        return None
    rules = {answer.rule for answer in given}
    return given[0] if len(given) == 1 or rules != {"tags"} else _Answer("repeated", given[0].text)


def _plain(text: str) -> str:
    """Strips white space and Markdown's marks around a text, and bold marks inside."""
    return text.replace("**", "").replace("__", "").strip().strip(_MARKS).strip()
