"""Generates fictional cases for the demo and the tests. Nothing in them is medicine.

A case belongs to a family of `clinic.py`: three diseases share a syndrome, and each of two findings
excludes one of them. Sentences, their order, decoys and numbers vary. The clinician's statements
quote the presentation, exclude the two mimics and support the diagnosis. One test case in five has
a finding in words that no training case has, so that a trained model is not always right.
`cases(seed, sizes)` is a pure function of its arguments.
"""

import dataclasses
import random
import re
from collections.abc import Mapping

from mcr_jax import clinic
from mcr_jax.cases import Case

UNSEEN_EVERY = 5  # one test case in this many has a finding in unseen words
NEAR = 0.5  # Jaccard similarity of word triples from which presentations are near duplicates

_OPENERS = (
    "{an_age}-year-old {person}, {trade} from {town}, presented with {complaint} for {span}.",
    "For {span} {complaint} had troubled {an_age}-year-old {trade} of {town}.",
    "{a_trade} from {town}, a {person} aged {age}, came because of {complaint} over {span}.",
    "After {span} of {complaint}, {an_age}-year-old {person}, {trade} in {town}, was seen.",
)
_SHOWN = (
    "Examination showed {quote} {modifier}.",
    "On examination the clinic noted {quote}, {modifier}.",
    "The examiner described {quote}.",
    "Also recorded was {quote}.",
)
_REPORTED = (
    "Further questions and tests brought up {quote}.",
    "The letter of referral mentioned {quote}.",
    "The second visit added {quote}.",
)
_ABSENT = ("There was {absent}.", "The second examiner saw {absent}.")
_STRAY = ("Besides, the nurse saw {quote}.", "By the way, the porter pointed out {quote}.")

# A statement first quotes, then concludes from the quote.
_OPENING = (
    "“{complaint}” could be {first}, {second} or {third}.",
    "For “{complaint}” consider {first}, {second} or {third}.",
)
_DECOY = (
    "“{absent}”, so {distant} was excluded.",
    "Given “{absent}”, {distant} was excluded.",
)
_FOREIGN = (
    "“{stray}” but not {missing}, so {foreign} was excluded.",
    "Given “{stray}” without {missing}, {foreign} was excluded.",
)
_EXCLUDE = (
    "“{quote}”, so {mimic} was excluded.",
    "Given “{quote}”, {mimic} was excluded.",
)
_SUPPORT = (
    "“{quote_a}” with “{quote_b}”, so {disease} was favored.",
    "Given “{quote_a}” and also “{quote_b}”, {disease} was favored.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Draw:
    """Facts of one case, before they become sentences."""

    family: clinic.Family
    a: int  # the disease that finding A excludes
    b: int  # the disease that finding B excludes; another one
    complaint: str
    quote_a: str
    quote_b: str
    distant: clinic.Family  # excluded by an absent sign
    absent: str | None
    foreign: clinic.Family  # suggested by a stray sign
    stray: str | None

    @property
    def disease(self) -> int:
        return 3 - self.a - self.b


def cases(seed: int, sizes: Mapping[str, int]) -> list[Case]:
    """Generates the cases.

    Args:
      seed: selects the patients; the diseases stay the same.
      sizes: cases per split, by "train", "val" and "test".

    Returns:
      The cases of test, val and train, in this order. Presentations of different splits have a
      similarity below NEAR.
    """
    kept: list[Case] = []
    index = _Triples()
    for split in ("test", "val", "train"):
        fresh: list[Case] = []
        number = 0
        while len(fresh) < sizes.get(split, 0):
            case = _case(random.Random(f"{seed}/{split}/{number}"), split, seed, number)
            number += 1
            if index.nearest(case.case_prompt) < NEAR:
                fresh.append(case)
        for case in fresh:
            index.add(case.case_prompt)
        kept += fresh
    return kept


def word_triples(text: str) -> frozenset[tuple[str, str, str]]:
    """Returns all sequences of three words of `text`, without case and punctuation."""
    words = re.findall(r"[\w.]*\w", text.lower())
    return frozenset(zip(words, words[1:], words[2:], strict=False))


class _Triples:
    """Index that finds the largest Jaccard similarity of a text to those added before."""

    def __init__(self) -> None:
        self._holders: dict[tuple[str, str, str], list[int]] = {}
        self._sizes: list[int] = []

    def add(self, text: str) -> None:
        triples = word_triples(text)
        for triple in triples:
            self._holders.setdefault(triple, []).append(len(self._sizes))
        self._sizes.append(len(triples))

    def nearest(self, text: str) -> float:
        triples = word_triples(text)
        shared: dict[int, int] = {}
        for triple in triples:
            for holder in self._holders.get(triple, ()):
                shared[holder] = shared.get(holder, 0) + 1
        return max(
            (n / (len(triples) + self._sizes[i] - n) for i, n in shared.items()), default=0.0
        )


def _case(rng: random.Random, split: str, seed: int, number: int) -> Case:
    turn, due = divmod(number, UNSEEN_EVERY)
    draw = _draw(rng, unseen="ab"[turn % 2] if split == "test" and due == 0 else "")
    statements = _statements(rng, draw)
    return Case(
        pmcid=f"FICTION-{seed}-{split}-{number}",
        title=f"{draw.family.diseases[draw.disease]}: a case that never happened",
        journal="Annals of the Fictional Clinic",
        case_prompt=_presentation(rng, draw),
        diagnostic_reasoning="  \n".join(f"{i}. {s}" for i, s in enumerate(statements, 1)),
        final_diagnosis=draw.family.diseases[draw.disease],
        split=split,
    )


def _draw(rng: random.Random, unseen: str) -> _Draw:
    family = rng.choice(clinic.FAMILIES)
    a, b = rng.sample(range(3), 2)
    distant, foreign = rng.sample([f for f in clinic.FAMILIES if f is not family], 2)
    has_absent, has_stray = rng.random() < 0.4, rng.random() < 0.5
    return _Draw(
        family=family,
        a=a,
        b=b,
        complaint=rng.choice(family.syndrome),
        quote_a=_wording(rng, family.axis_a[a], unseen == "a"),
        quote_b=_wording(rng, family.axis_b[b], unseen == "b"),
        distant=distant,
        absent=f"no sign of {distant.axis_a[1][0]}" if has_absent else None,
        foreign=foreign,
        stray=_wording(rng, rng.choice(foreign.axis_a), False) if has_stray else None,
    )


def _wording(rng: random.Random, wordings: clinic.Wordings, unseen: bool) -> str:
    *usual, other = wordings
    return other if unseen else rng.choice(usual)


def _presentation(rng: random.Random, draw: _Draw) -> str:
    person, she, her = rng.choice(clinic.PERSONS)
    town = rng.choice(clinic.TOWNS)
    age, trade = rng.randint(19, 88), rng.choice(clinic.TRADES)
    opener = rng.choice(_OPENERS).format(
        age=age,
        an_age=f"an {age}" if str(age).startswith("8") else f"a {age}",
        person=person,
        trade=trade,
        a_trade=f"an {trade}" if trade[0] in "aeiou" else f"a {trade}",
        town=town,
        complaint=draw.complaint,
        span=rng.choice(clinic.SPANS),
    )
    rest = [
        rng.choice(_SHOWN).format(quote=draw.quote_a, modifier=rng.choice(clinic.MODIFIERS)),
        rng.choice(_REPORTED).format(quote=draw.quote_b),
        *(_history(t, rng, she, her, town) for t in rng.sample(clinic.HISTORY, rng.randint(1, 2))),
        _routine(rng.choice(clinic.VITALS), rng),
    ]
    if draw.absent:
        rest.append(rng.choice(_ABSENT).format(absent=draw.absent))
    if rng.random() < 0.4:
        rest.append(_routine(clinic.USUAL, rng))
    if draw.stray:
        rest.append(rng.choice(_STRAY).format(quote=draw.stray))
    rng.shuffle(rest)
    return " ".join([opener[0].upper() + opener[1:], *rest])


def _history(template: str, rng: random.Random, she: str, her: str, town: str) -> str:
    return template.format(
        she=she,
        She=she.capitalize(),
        her=her,
        Her=her.capitalize(),
        town=town,
        drug=rng.choice(clinic.DRUGS),
        span=rng.choice(clinic.SPANS),
        bone=rng.choice(clinic.BONES),
        pets=rng.choice(clinic.PETS),
        count=rng.choice(("two", "three", "four", "six")),
        appetite=rng.choice(clinic.APPETITES),
        drink=rng.choice(clinic.DRINKS),
    )


def _routine(template: str, rng: random.Random) -> str:
    name, unit, low, high = rng.choice(clinic.ROUTINE_LABS)
    return template.format(
        pulse=rng.randint(58, 104),
        temperature=round(rng.uniform(36.1, 38.6), 1),
        breaths=rng.randint(12, 24),
        weight=rng.randint(48, 96),
        height=rng.randint(150, 192),
        routine=name,
        routine_value=rng.randint(low, high),
        routine_unit=unit,
    )


def _statements(rng: random.Random, draw: _Draw) -> list[str]:
    names = draw.family.diseases
    facts = {"quote_a": draw.quote_a, "quote_b": draw.quote_b}
    statements: list[str] = []
    if rng.random() < 0.7:
        opening = rng.choice(_OPENING)
        ordered = dict(zip(("first", "second", "third"), names, strict=True))
        statements.append(opening.format(complaint=draw.complaint, **ordered))
    if draw.absent:
        distant = draw.distant.diseases[0]
        statements.append(rng.choice(_DECOY).format(distant=distant, absent=draw.absent))
    if draw.stray:
        foreign, missing = draw.foreign.diseases[0], draw.foreign.syndrome[0]
        statements.append(
            rng.choice(_FOREIGN).format(foreign=foreign, missing=missing, stray=draw.stray)
        )
    for mimic, quote in ((draw.a, draw.quote_a), (draw.b, draw.quote_b)):
        statements.append(rng.choice(_EXCLUDE).format(mimic=names[mimic], quote=quote))
    statements.append(rng.choice(_SUPPORT).format(disease=names[draw.disease], **facts))
    return statements
