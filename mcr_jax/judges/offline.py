"""Rule-based judge without a model: for the demo, the tests and machines without a key.

It replies with the same JSON as a model. It compares words, not meaning: it misses paraphrases.

- Diagnosis: "same" if both names have the same words; case, punctuation, articles, possessive and
  plural endings are ignored. Synonyms are different names.
- Reasons: a run of sentences of the trace, as many as the statement has, states it if
  1. the run has every binding word of the statement: a word in “quotation marks” or with a capital
     letter or digit (finding, name, value), or a direction such as "high" or "excluded";
  2. where both have quotations, one quotation of the run has all words of each quotation;
  3. the run has at least `MIN_SHARE` of the other words, without the common words in `_GLUE`;
  4. both contain a denial, or neither does.
  So the disease with another finding does not match, nor the finding with another disease. The
  verdict quotes the run with the largest share of all words.
- Distortion, for traces of the fictional clinic: a run keeps a statement if it states it by these
  rules, with the same conclusions ("unlikely" and "ruled" count as "excluded") and as many denials.
  Otherwise the statement is turned if a run has its remaining words, else missing. A sentence that
  keeps or turns no statement is an addition.
"""

import json
import re
from collections.abc import Iterator, Sequence

from mcr_jax.generate.api import Outcome, Reply, Request
from mcr_jax.judges import _words, distortion

MIN_SHARE = 0.75  # of the words that are neither binding nor common

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
_CONCLUSIONS = re.compile(
    r"\b(?:(not fit|rule[sd]?|excludes?|discarded|unlikely|improbable|against)"
    r"|favou?rs?|supports?|fits|likely|confirmed)\b",
    re.IGNORECASE,
)
_OPENS = re.compile('[“"]')
_CAPITAL = re.compile(r"\b\w*[A-Z0-9]\w*")


class OfflineJudge:
    """`Generator` that applies the rules above to `request.fields`."""

    identity = "offline/1"  # incremented when a rule changes
    concurrency = 1

    def generate(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Yields a reply for every wanted (request, index), equal for all indices."""
        for request in requests:
            fields = request.fields
            if request.schema == distortion.SCHEMA:
                verdict: object = _distortion(fields["statements"], fields["trace"])
            elif "trace" in fields:
                verdict = _reasons(fields["statements"], fields["trace"])
            else:
                verdict = {"same": _same(**fields)}
            text = json.dumps(verdict, ensure_ascii=False)
            answer = {"text": text, "outcome": Outcome.OK, "model_version": self.identity}
            yield from (Reply(key=request.key, index=index, **answer) for index in request.wanted)


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
    verdict, used = [], set()
    for number, statement in enumerate(statements, start=1):
        runs = _runs(statement, trace)
        kept = max(runs, key=lambda run: _keeps(statement, run), default="")
        word, quote = distortion.KEPT, kept
        if not _keeps(statement, kept):
            quote = next((run for run in runs if _touches(statement, run)), "")
            word = distortion.TURNED if quote else distortion.MISSING
        verdict.append({"number": number, "verdict": word, "quote": quote})
        used |= set(_sentences(quote))
    return {"statements": verdict, "added": [s for s in _sentences(trace) if s not in used]}


def _sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in _words.sentences(text)]


def _runs(statement: str, trace: str) -> list[str]:
    """Returns all runs of sentences of the trace with as many sentences as the statement."""
    size = max(1, len(_sentences(statement)))
    spans = list(_words.sentences(trace))
    return [trace[a[0] : b[1]] for a, b in zip(spans, spans[size - 1 :], strict=False)]


def _concluding(text: str) -> str:
    """Replaces synonyms of the two conclusions by "excluded" and "favored"."""
    return _CONCLUSIONS.sub(lambda match: " excluded " if match[1] else " favored ", text)


def _keeps(statement: str, run: str) -> float:
    """Returns `_coverage`, or 0 if conclusions or numbers of denials differ."""
    statement, run = _concluding(statement), _concluding(run)
    wanted, found = _words.words(statement), _words.words(run)
    same = _CONCLUDES.intersection(wanted) == _CONCLUDES.intersection(found)
    same = same and sum(w in _DENIAL for w in wanted) == sum(w in _DENIAL for w in found)
    return _coverage(statement, run) if same else 0.0


def _touches(statement: str, run: str) -> bool:
    """Returns True if a run has the content words of a statement, with any conclusion."""
    wanted, found = set(_words.words(statement)), set(_words.words(run))
    content = wanted - _GLUE - _DENIAL - _DIRECTION
    return bool(content) and len(content & found) >= MIN_SHARE * len(content)


def _coverage(statement: str, run: str) -> float:
    """Returns the share of the statement's words in `run`, or 0 if `run` does not state it."""
    wanted, found = set(_words.words(statement)), set(_words.words(run))
    quoted, places = _quotations(statement), _quotations(run) or [found]
    content = wanted - _GLUE - _DENIAL
    capitals = set(_words.words(" ".join(_CAPITAL.findall(statement))))
    binding = content & capitals.union(_DIRECTION, *quoted)
    rest = content - binding
    stated = (
        bool(content)
        and binding <= found
        and all(any(words - _GLUE <= place for place in places) for words in quoted)
        and len(rest & found) >= MIN_SHARE * len(rest)
        and bool(wanted & _DENIAL) == bool(found & _DENIAL)
    )
    return len(content & found) / len(content) if stated else 0.0


def _quotations(text: str) -> list[set[str]]:
    """Returns the words of each quotation; unclosed quotation marks are ignored."""
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
