"""A judge of rules, with no model behind it: for the demo, the tests and machines without a key.

It replies with the JSON that a model would reply with, so its verdicts go the same way. It reads
words, not meaning: a paraphrase is missed, and what it finds was nearly said in those words.

- Diagnosis: same if both names are the same words, case, punctuation, articles, possessive and
  plural endings aside. Synonyms are different names.
- Reasons: a statement is made by a run of as many sentences of the trace as it has itself, if
  1. every binding word of the statement is there: a word within “quotation marks” or with a capital
     letter or digit in it (finding, name, value), or one that gives a direction (high, excluded);
  2. where both quote, the words of each quotation stand within one quotation of the run;
  3. at least `SHARE` of the other words are there, the common ones in `_GLUE` not counted;
  4. both deny something, or neither does.
  So the right disease with another finding is no match, nor is the right finding with another
  disease. The run that covers the largest share of all words is quoted, as it stands.
- Distortion, for traces of the fictional clinic: a statement is kept by a run that makes it by
  these rules, where words such as "unlikely" and "ruled" count as "excluded", with the same
  conclusions and as many denials. Else it is turned if a run has its words but for these, and
  missing if none has. A sentence that keeps or turns no statement was added.
"""

import json
import re
from collections.abc import Iterator, Sequence

from mcr_jax.generate.api import Outcome, Reply, Request
from mcr_jax.judges import _words, distortion

SHARE = 0.75

_GLUE = frozenset(
    _words.words(
        """
        a about above after again against all alone also although an and any are as at be because
        been before being both but by came can case clinician come consider considered could did do
        does due each either enough find for found from given had has have he her here him his hold
        how i if in into is it its itself join may might more most must need noted of off on one
        only open or other otherwise our out over own patient presented read reading she should
        show showed since so some such than that the their them then there these they this those
        through thus to together too under until up very was we were what when where whether which
        while who whose why will with within would you
        """
    )
)
_DIRECTION = frozenset(
    _words.words(
        """
        abnormal bilateral confirmed decreased elevated excluded favored high higher increased large
        left likely low lower negative normal positive raised reduced right ruled small supported
        unlikely unsupported
        """
    )
)
_DENIAL = frozenset(
    _words.words("absence absent denied lacked lacking neither never no nobody nor not without")
)
_CONCLUDES = frozenset(("excluded", "favored"))
_SAME_CONCLUSION = re.compile(
    r"\b(?:(not fit|rule[sd]?|excludes?|discarded|unlikely|improbable|against)"
    r"|favou?rs?|supports?|fits|likely|confirmed)\b",
    re.IGNORECASE,
)
_OPENS = re.compile('[“"]')
_CAPITAL = re.compile(r"\b\w*[A-Z0-9]\w*")


class OfflineJudge:
    """A `Generator` that decides by the rules above, from `request.fields` alone."""

    identity = "offline/1"  # counts up when a rule changes
    concurrency = 1

    def generate(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Yields a reply for every wanted (request, index), all indices alike."""
        for request in requests:
            asked = request.fields
            if request.schema == distortion.SCHEMA:
                verdict: object = _distortion(asked["statements"], asked["trace"])
            elif "trace" in asked:
                verdict = _reasons(asked["statements"], asked["trace"])
            else:
                verdict = {"same": _same(**asked)}
            text = json.dumps(verdict, ensure_ascii=False)
            for index in request.wanted:
                yield Reply(
                    key=request.key,
                    index=index,
                    text=text,
                    outcome=Outcome.OK,
                    model_version=self.identity,
                )


def _same(reference: str, predicted: str) -> bool:
    name = _words.name(predicted)
    return bool(name) and name == _words.name(reference)


def _reasons(statements: Sequence[str], trace: str) -> list[dict[str, object]]:
    verdict = []
    for number, statement in enumerate(statements, start=1):
        best = max(_runs(statement, trace), key=lambda run: _coverage(statement, run), default="")
        quotes = [best] if _coverage(statement, best) else []
        verdict.append({"number": number, "quotes": quotes})
    return verdict


def _distortion(statements: Sequence[str], trace: str) -> dict[str, object]:
    verdict, told = [], set()
    for number, statement in enumerate(statements, start=1):
        runs = _runs(statement, trace)
        kept = max(runs, key=lambda run: _keeps(statement, run), default="")
        word, quote = distortion.KEPT, kept
        if not _keeps(statement, kept):
            quote = next((run for run in runs if _touches(statement, run)), "")
            word = distortion.TURNED if quote else distortion.MISSING
        verdict.append({"number": number, "verdict": word, "quote": quote})
        told |= set(_sentences(quote))
    return {"statements": verdict, "added": [s for s in _sentences(trace) if s not in told]}


def _sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in _words.sentences(text)]


def _runs(statement: str, trace: str) -> list[str]:
    """Every run of as many sentences of the trace as the statement has."""
    size = max(1, len(_sentences(statement)))
    spans = list(_words.sentences(trace))
    return [trace[a[0] : b[1]] for a, b in zip(spans, spans[size - 1 :], strict=False)]


def _concluding(text: str) -> str:
    """`text` with one word for each of the two conclusions."""
    return _SAME_CONCLUSION.sub(lambda said: " excluded " if said[1] else " favored ", text)


def _keeps(statement: str, run: str) -> float:
    """As `_coverage`, where conclusions and the number of denials agree as well."""
    here, there = _concluding(statement), _concluding(run)
    said, heard = _words.words(here), _words.words(there)
    same = _CONCLUDES.intersection(said) == _CONCLUDES.intersection(heard)
    same = same and sum(w in _DENIAL for w in said) == sum(w in _DENIAL for w in heard)
    return _coverage(here, there) if same else 0.0


def _touches(statement: str, run: str) -> bool:
    """Whether a run has the words of a statement, whatever it says with them."""
    said, heard = set(_words.words(statement)), set(_words.words(run))
    content = said - _GLUE - _DENIAL - _DIRECTION
    return bool(content) and len(content & heard) >= SHARE * len(content)


def _coverage(statement: str, run: str) -> float:
    """The share of the statement's words that `run` holds, or 0 where it does not make it."""
    said, heard = set(_words.words(statement)), set(_words.words(run))
    quoted, places = _quotations(statement), _quotations(run) or [heard]
    content = said - _GLUE - _DENIAL
    capitals = set(_words.words(" ".join(_CAPITAL.findall(statement))))
    binding = content & capitals.union(_DIRECTION, *quoted)
    rest = content - binding
    made = (
        bool(content)
        and binding <= heard
        and all(any(words - _GLUE <= place for place in places) for words in quoted)
        and len(rest & heard) >= SHARE * len(rest)
        and bool(said & _DENIAL) == bool(heard & _DENIAL)
    )
    return len(content & heard) / len(content) if made else 0.0


def _quotations(text: str) -> list[set[str]]:
    """The words of each quotation; a mark that is not closed is none."""
    found, at, unclosed = [], 0, set()
    while mark := _OPENS.search(text, at):
        at = mark.end()
        if mark[0] in unclosed:
            continue
        end = text.find("”" if mark[0] == "“" else '"', at)
        if end < 0:
            unclosed.add(mark[0])
        else:
            found.append(set(_words.words(text[at:end])))
            at = end + 1
    return found
