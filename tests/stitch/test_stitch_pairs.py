"""Audit and judge of meaning on faithful and unfaithful retellings.

../shared/cases/stitch_pairs.py holds pairs of an invented statement and a retelling. A pair of
FAITHFUL has the same meaning, a pair of UNFAITHFUL another one: a denial lost, values exchanged,
events in another order, another person, place or organ. Tests skip without that file.
"""

import importlib.util
import json
import pathlib

import pytest

from mcr_jax import config as configs
from mcr_jax import prompts
from mcr_jax.cases import Case
from mcr_jax.data.traces import JOINED, STITCHED
from mcr_jax.generate.api import Outcome, Reply
from mcr_jax.generate.gemini import Gemini
from mcr_jax.generate.ledger import Ledger
from mcr_jax.stitch.audit import Auditor, Limits
from mcr_jax.stitch.meaning import Meaning
from mcr_jax.stitch.write import stitch

PAIRS = pathlib.Path(__file__).resolve().parents[3] / "shared" / "cases" / "stitch_pairs.py"
pytestmark = pytest.mark.skipif(not PAIRS.exists(), reason=f"no ../shared/cases/{PAIRS.name}")


@pytest.fixture(scope="module")
def pairs():
    """Case, retelling and whether it is faithful, of every pair."""
    spec = importlib.util.spec_from_file_location("stitch_pairs", PAIRS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [
        (
            Case(
                case_prompt="A fictional patient.",
                diagnostic_reasoning=statement,
                final_diagnosis="Quillfever",
                split="train",
            ),
            retelling,
            faithful,
        )
        for told, faithful in ((module.FAITHFUL, True), (module.UNFAITHFUL, False))
        for statement, retelling in told
    ]


def test_the_audit_rejects_no_faithful_retelling_and_needs_a_judge_for_the_others(pairs):
    auditor = Auditor([case for case, _, _ in pairs], Limits())
    rejected = [faithful for case, said, faithful in pairs if auditor.audit(case, said).faults]
    assert rejected == []  # the same words, numbers and names, put together otherwise


class Reteller:
    """A `Generator` of the retellings."""

    identity, concurrency = "reteller/1", 1

    def __init__(self, said):
        self.said = said

    def generate(self, requests):
        for request in requests:
            for index in request.wanted:
                text = self.said[request.key]
                yield Reply(key=request.key, index=index, text=text, outcome=Outcome.OK)


@pytest.mark.parametrize("quoted", [True, False])
def test_by_correct_replies_the_judge_keeps_the_faithful_retellings_alone(
    pairs, quoted, gemini, tmp_path
):
    config = configs.default()
    config.stitch.attempts, config.stitch.judge = 1, "gemini"
    for _, said, faithful in pairs:
        verdict = "kept" if faithful else "turned"
        entry = {"number": 1, "verdict": verdict, "quote": said if quoted else "it never said so"}
        gemini.then(gemini.says(json.dumps({"statements": [entry], "added": []})))
    cases, judge = [case for case, _, _ in pairs], Gemini("gemini-3.5-flash-lite", concurrency=1)
    writer = Reteller({case.fingerprint: said for case, said, _ in pairs})
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        meaning = Meaning(ledger, config, judge, "base")
        prompt = prompts.load("stitch")
        rows = stitch(ledger, config, cases, writer, "base", prompt, judge=meaning)
    for row, (_, said, faithful) in zip(rows, pairs, strict=True):
        if faithful and quoted:
            assert (row.source, row.trace, row.faults) == (STITCHED, said, ())
        else:
            faults = ("dropped",) if faithful else ("turned", "dropped")
            assert (row.source, row.faults) == (JOINED, faults)
    for call, (case, said, _) in zip(gemini.calls, pairs, strict=True):
        assert f"1. {case.statements[0]}\n" in call.text and f"<trace>\n{said}\n" in call.text
