"""Functions that read texts of models or articles take linear time.

Each function reads texts of one length and of four times that length: linear time is about four
times as long, quadratic time sixteen times. All names of diseases are invented.
"""

import gc
import itertools
import string
import time
from collections.abc import Callable

import numpy as np
import pytest

from mcr_jax import cases, completion, prompts, quotes, statements
from mcr_jax.data import traces
from mcr_jax.generate.api import Request
from mcr_jax.generate.stops import StopFinder, cut
from mcr_jax.judges import _words, diagnosis, distortion, offline, reasons
from mcr_jax.report import evidence
from mcr_jax.stitch import audit, form, names, text
from mcr_jax.text import plain_chat

CASE = cases.Case(
    case_prompt="A fictional patient had fever.",
    diagnostic_reasoning="1. Mossgout was out — no “fever” at 38.5 C.\n2. So it was Quillitis.",
    final_diagnosis="Quillitis (of the nails)",
)
SAID = "fever was not seen now "
AUDITOR = audit.Auditor([CASE], audit.Limits())
TIMES, MOST = 4, 10  # how much longer the longer text is, and how much longer it may take
FLOOR_S, HOPELESS_S = 0.002, 10.0  # shorter times are not told from noise; longer ones have none

UNITS = (
    *(
        "<",
        "(",
        "[",
        "“",
        '"',
        "'",
        ".",
        "…",
        ", ",
        " ",
        "\n",
        "\t",
        "*",
        "_",
        "- ",
        "> ",
        "`",
        "&",
    ),
    *("1", "1.", "1. ", "1) (", "\\n1. ", "①", "a", "a ", "Is. ", "[1, ", "[...] ", "...", "&lt"),
    *(
        "<answer>",
        "<think>",
        "</think>",
        "<answer>a</answer>",
        "\\boxed{a}",
        "\\boxed{",
        "answer: ",
    ),
    *(
        "\u0301\u0327",
        "\u200b",
        "é",
        "ﬃ",
        "中",
        "```\n",
        "{",
        "not ",
        "diagnosis ",
        "the  statement ",
    ),
    *("it was excluded, ", "Quillitis; it is excluded, ", SAID),
)


def distinct(ending: str) -> Callable[[int], str]:
    """A maker of texts of words that are all different."""

    def make(length: int) -> str:
        letters = itertools.product(string.ascii_lowercase, repeat=5)
        count = length // (5 + len(ending))
        return "".join("".join(word) + ending for word in itertools.islice(letters, count))

    return make


MAKERS = {
    **{repr(unit): lambda n, unit=unit: (unit * n)[:n] for unit in UNITS},
    **{f"different words {end!r}": distinct(end) for end in (" ", "itis, ", "itis. ")},
    **{
        f"{word!r} far from another": lambda n, word=word: word + " " * n + "x"
        for word in ("<", "the", "answer")
    },
}


def judged(trace: str) -> None:
    fields = {"statements": CASE.statements, "trace": trace, "quote_words": 4}
    request = Request(
        key="k", messages=({"role": "user", "content": "x"},), max_tokens=9, fields=fields
    )
    quoted = '{"number": %d, "quotes": ["fever was not seen now", "it was excluded, it was"]}'
    reasons.parse(request, f"[{quoted % 1}, {quoted % 2}]")


def compared(trace: str) -> None:
    fields = {"statements": CASE.statements, "trace": trace, "quote_words": 4}
    request = Request(key="k", messages=(), max_tokens=9, fields=fields)
    entry = '{"number": %d, "verdict": "kept", "quote": "fever was not seen now"}'
    added = '["it was excluded, it was", "Mossgout was out"]'
    reply = f'{{"statements": [{entry % 1}, {entry % 2}], "added": {added}}}'
    distortion.parse(request, reply)


def refused(reply: str) -> None:
    request = Request(key="k", messages=({"role": "user", "content": "x"},), max_tokens=9)
    with pytest.raises(ValueError):
        diagnosis.parse(request, reply)


def stopped(told: str) -> None:
    find = StopFinder(lambda ids: "".join(map(chr, ids)), ("</stop>", "\n\nUser:"), (0,))
    find(np.fromiter(map(ord, told), np.int32, len(told)))


def published(told: str) -> None:
    row = {"case_prompt": told, "diagnostic_reasoning": f"x {told}", "final_diagnosis": "x"}
    fields = {name: cases._escaped(value) for name, value in row.items()}
    assert cases._as_fields(fields, "val").items() >= row.items()


QUICK: dict[str, Callable[[str], object]] = {
    "prompts.inert": prompts.inert,
    "quotes.normal": quotes.normal,
    "quotes.size": quotes.size,
    "quotes.find in a text": lambda told: quotes.find("fever was seen", told),
    "quotes.find of a text": lambda told: quotes.find(told, "a fever was seen"),
    "quotes.find of a half": lambda told: quotes.find(told[: len(told) // 2], told),
    "quotes.find of a part": lambda told: quotes.find(told[:30], told),
    "completion.after_thoughts": completion.after_thoughts,
    "traces.breaks": traces.breaks,
    "cases as they are read and written": published,
    "words": _words.words,
    "sentences": lambda told: list(_words.sentences(told)),
    "a reply of a judge": refused,
    "a verdict on a trace": judged,
    "stop strings": stopped,
    "stops.cut": lambda told: cut(told, ("</stop>", "\n\nUser:")),
    "plain_chat": plain_chat._defused,
    "evidence.visible": evidence.visible,
    "evidence.segments": lambda told: evidence.segments(told, [[SAID, told[:20]], ["it was"]]),
    "a verdict on a retelling": compared,
    "stitch.sentences": text.sentences,
    "stitch.numbers": text.numbers,
    "stitch.is_wrapped": lambda told: form.is_wrapped(told, "a b c"),
    "stitch.trace_of": audit.trace_of,
    "stitch.name_of": names.name_of,
    "stitch.is_early": lambda told: names.is_early(CASE, told),
}
SLOW: dict[str, Callable[[str], object]] = {
    "completion.parse": completion.parse,
    "statements.parse_statements": statements.parse_statements,
    "the offline judge": lambda told: offline._reasons(CASE.statements, told),
    "the offline judge of retellings": lambda told: offline._distortion(CASE.statements, told),
    "the audit": lambda told: AUDITOR.audit(CASE, told),
}


def seconds(read: Callable[[str], object], told: str) -> float:
    gc.disable()  # it looks through all that the other tests have left
    try:
        begin = time.process_time()
        read(told)
        return time.process_time() - begin
    finally:
        gc.enable()


def growth(read: Callable[[str], object], make: Callable[[int], str], length: int) -> float:
    """Returns the ratio of times for texts of `TIMES` the length; repeats reduce the noise."""
    short, long = make(length), make(TIMES * length)
    least = [float("inf")] * 2
    for _ in range(8):
        least = [
            min(old, seconds(read, told)) for old, told in zip(least, (short, long), strict=True)
        ]
        if least[1] <= MOST * max(FLOOR_S, least[0]) or least[1] > HOPELESS_S:
            break
    return least[1] / max(FLOOR_S, least[0])


@pytest.mark.parametrize(
    ("read", "length"),
    [
        *(pytest.param(read, 20_000, id=name) for name, read in QUICK.items()),
        *(pytest.param(read, 4_000, id=name) for name, read in SLOW.items()),
    ],
)
def test_work_grows_with_the_length_of_the_text_and_no_faster(read, length):
    assert [name for name, make in MAKERS.items() if growth(read, make, length) > MOST] == []


def test_a_name_in_a_case_is_learned_in_linear_time():
    def learn(told: str) -> None:
        case = {"diagnostic_reasoning": f"x {told} x", "final_diagnosis": f"x {told}"}
        names.Vocabulary([cases.Case(case_prompt="x", **case)])

    found = [name for name, make in MAKERS.items() if growth(learn, make, 3_000) > MOST]
    assert found == []


def test_tokens_of_hostile_text_are_made_in_linear_time(clinic_tokenizer):
    def encode(told: str) -> None:
        clinic_tokenizer.encode_prompt([{"role": "user", "content": told}])

    assert [name for name, make in MAKERS.items() if growth(encode, make, 10_000) > MOST] == []
