"""Writes good traces, paraphrases of the fictional statements, and traces with planted faults.

It parses the templates of `synthetic.py` and varies verbs, word order and quotation marks, and
sometimes joins two statements in one sentence.
"""

import random
import re

from mcr_jax.cases import Case

_READ = (
    (
        "opening",
        r"(?:For )?“(?P<q>.+)” (?:could be|consider) (?P<a>.+), (?P<b>.+) or (?P<c>.+)\.",
    ),
    (
        "foreign",
        r"(?:Given )?“(?P<q>.+)” (?:but not|without) (?P<missing>.+), (?:so )?(?P<d>.+)"
        r" was excluded\.",
    ),
    ("exclude", r"(?:Given )?“(?P<q>.+)”, (?:so )?(?P<d>.+) was excluded\."),
    (
        "support",
        r"(?:Given )?“(?P<q>.+)” (?:with|and also) “(?P<r>.+)”, (?:so )?(?P<d>.+) was favored\.",
    ),
)
_SAY = {
    "opening": (
        "A patient with {q} may have {a}, {b}, or {c}.",
        "{q} raises three possibilities: {a}, {b} and {c}.",
        "Several diseases begin with {q}, among them {a}, {b} and also {c}.",
        "The differential of {q} includes {a}, {b} and {c}.",
    ),
    "foreign": (
        "Although {q} might point to {d}, there is no {missing}, which rules {d} out.",
        "{q} hints at {d}, but without {missing} that is unlikely.",
        "With {q} yet no {missing}, {d} can be discarded.",
        "One could think of {d} because of {q}; as {missing} is absent, {d} is ruled out.",
    ),
    "exclude": (
        "The finding of {q} argues against {d}.",
        "{d} does not fit with {q}, and so it can be ruled out.",
        "Because of {q}, {d} is unlikely.",
        "{q} makes {d} improbable and effectively excludes it.",
    ),
    "support": (
        "What remains is {d}, which both {q} and {r} favor.",
        "Taken together, {q} and {r} make {d} the most likely explanation.",
        "The combination of {q} with {r} supports {d}.",
        "{d} is therefore the diagnosis that fits {q} as well as {r}.",
    ),
}


def paraphrase(case: Case, rng: random.Random) -> str:
    """A fluent trace that says all that the statements of a fictional case say."""
    return " ".join(sentences(case, rng))


def sentences(case: Case, rng: random.Random) -> list[str]:
    """Returns `paraphrase` with one item per statement."""
    made = []
    for statement in case.statements:
        kind, match = next((k, m) for k, r in _READ if (m := re.fullmatch(r, statement)))
        said = rng.choice(_SAY[kind]).format(**match.groupdict())
        made.append(said[0].upper() + said[1:])
    return made


def dropped(case: Case, rng: random.Random) -> str:
    """Without one of the statements."""
    made = sentences(case, rng)
    del made[rng.randrange(len(made))]
    return " ".join(made)


def invented(case: Case, rng: random.Random, others: list[str]) -> str:
    """With a disease that nothing in the case gives."""
    made, told = sentences(case, rng), f"{case.case_prompt} {case.diagnostic_reasoning}"
    name = rng.choice([name for name in others if name not in told])
    made.insert(rng.randrange(len(made)), f"One should also think of {name}, which is not rare.")
    return " ".join(made)


def early(case: Case, rng: random.Random) -> str:
    """With the diagnosis given away in the first sentence."""
    said = rng.choice(("This is {}.", "The diagnosis is {}.", "The picture suggests {} at once."))
    return " ".join([said.format(case.final_diagnosis), *sentences(case, rng)])


def reversed_order(case: Case, rng: random.Random) -> str:
    """With the conclusion first and the rest behind it."""
    made = sentences(case, rng)
    return " ".join([made[-1], *made[:-1]])


def denied(case: Case, rng: random.Random) -> str:
    """With a finding of the last statement denied."""
    finding = re.findall("“(.+?)”", case.statements[-1])[0]
    other = finding.removeprefix("no ") if finding.startswith("no ") else f"no {finding}"
    return paraphrase(case, rng).replace(finding, other)


def turned(case: Case, rng: random.Random) -> str:
    """With an excluded disease confirmed instead."""
    made = sentences(case, rng)
    places = [
        (n, m["d"])
        for n, s in enumerate(case.statements)
        if (m := re.search(r"(?:Given )?“.+”.*?, (?:so )?(?P<d>[^,]+) was excluded", s))
    ]
    place, name = rng.choice(places)
    quote = re.findall("“(.+?)”", case.statements[place])[0]
    made[place] = f"Given {quote}, {name} was confirmed."
    return " ".join(made)
