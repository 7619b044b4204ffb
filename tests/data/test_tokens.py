"""Cases become tokens once, the same ones each time, and no case is cut or lost in silence."""

import dataclasses
import json
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from chat_cases import CHATML, tokenizer_json

from mcr_jax import completion
from mcr_jax.cases import Case
from mcr_jax.data import example as example_lib
from mcr_jax.data.example import example, training_texts
from mcr_jax.data.tokens import Tokens, fit, tokenize
from mcr_jax.errors import McrError
from mcr_jax.prompts import Prompt
from mcr_jax.text import plain_chat
from mcr_jax.text.tokenizer import Tokenizer

PROMPT = Prompt("short", "{{case_prompt}}")


class Lazy(Sequence):
    """Makes a case each time it is asked for one."""

    def __init__(self, cases):
        self._rows = [case.asdict() for case in cases]

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [Case(**fields) for fields in self._rows[row]]
        return Case(**self._rows[row])


@pytest.fixture(scope="module")
def cases(clinic_cases):
    return clinic_cases["train"]


@pytest.fixture(scope="module")
def tokens(cases, clinic_prompt, clinic_tokenizer) -> Tokens:
    return tokenize(cases, clinic_prompt, clinic_tokenizer, None)


def assert_same(a: Tokens, b: Tokens):
    assert a.fingerprints == b.fingerprints
    np.testing.assert_array_equal(a.lengths, b.lengths)
    for one, other in zip(a, b, strict=True):
        assert one.fingerprint == other.fingerprint
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.trained, other.trained)
    assert a.digest == b.digest


def grain_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


def test_every_case_is_tokenized_in_order_as_one_alone_is(
    tokens, cases, clinic_prompt, clinic_tokenizer
):
    assert len(tokens) == len(cases)
    for found, case in zip(tokens, cases, strict=True):
        alone = example(case, clinic_prompt, clinic_tokenizer)
        assert found.fingerprint == case.fingerprint
        np.testing.assert_array_equal(found.ids, alone.ids)
        np.testing.assert_array_equal(found.trained, alone.trained)
        assert (found.ids.dtype, found.trained.dtype) == (np.int32, bool)
    assert tokens.fingerprints == tuple(case.fingerprint for case in cases)
    assert tokens.lengths.tolist() == [len(e.ids) for e in tokens]
    assert tokens.highest == max(e.ids.max() for e in tokens) < clinic_tokenizer.vocab_size


def test_a_lazy_source_gives_the_same_tokens_as_a_list(
    tokens, cases, clinic_prompt, clinic_tokenizer
):
    assert_same(tokenize(Lazy(cases), clinic_prompt, clinic_tokenizer, None), tokens)


def test_what_is_kept_is_what_was_made_and_is_not_made_again(
    tokens, cases, clinic_prompt, clinic_tokenizer, tmp_path
):
    assert_same(tokenize(cases, clinic_prompt, clinic_tokenizer, tmp_path), tokens)
    (file,) = tmp_path.iterdir()
    written = file.stat()
    again = tokenize(Lazy(cases), clinic_prompt, clinic_tokenizer, tmp_path)
    assert_same(again, tokens)
    assert again.highest == tokens.highest
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (written.st_mtime_ns, written.st_ino)
    assert not again[0].ids.flags.writeable  # mapped


def test_a_changed_input_never_meets_what_was_kept(
    cases, clinic_prompt, clinic_tokenizer, tmp_path
):
    other = dataclasses.replace(cases[0], final_diagnosis="Tallow gout")
    longer = Prompt(clinic_prompt.name, clinic_prompt.text + " Be brief.")
    trained = Tokenizer.train(training_texts(cases, clinic_prompt), 480)
    tokenize(cases, clinic_prompt, clinic_tokenizer, tmp_path)
    for number, changed in enumerate(
        (
            (cases[::-1], clinic_prompt, clinic_tokenizer),
            (cases[:-1], clinic_prompt, clinic_tokenizer),
            ([other, *cases[1:]], clinic_prompt, clinic_tokenizer),
            (cases, longer, clinic_tokenizer),
            (cases, clinic_prompt, trained),
        ),
        start=2,
    ):
        assert_same(tokenize(*changed, tmp_path), tokenize(*changed, None))
        assert len(list(tmp_path.iterdir())) == number


def test_other_traces_are_other_tokens_and_never_meet_what_was_kept(
    tokens, cases, clinic_prompt, clinic_tokenizer, tmp_path
):
    one = {case.fingerprint: " ".join(case.statements) for case in cases}
    other = one | {cases[-1].fingerprint: "The ribs hum."}
    made = {
        tokenize(cases, clinic_prompt, clinic_tokenizer, tmp_path, traces).digest
        for traces in (None, one, other)
    }
    assert len(made) == len(list(tmp_path.iterdir())) == 3 and tokens.digest in made
    last = tokenize(cases, clinic_prompt, clinic_tokenizer, tmp_path, other)[-1]
    alone = example(cases[-1], clinic_prompt, clinic_tokenizer, "The ribs hum.")
    np.testing.assert_array_equal(last.ids, alone.ids)


def test_what_another_rendering_or_layout_made_is_not_met_either(
    tokens, cases, clinic_prompt, clinic_tokenizer, tmp_path, monkeypatch
):
    tokenize(cases, clinic_prompt, clinic_tokenizer, tmp_path)
    changes = (
        (completion, "render", lambda trace, answer: f"{trace}\n{answer}"),
        (plain_chat, "_header", lambda role: f"{plain_chat.MARKERS[role]}\n\n"),
    )
    for change in changes:  # of the code
        with monkeypatch.context() as patch:
            patch.setattr(*change)
            made = tokenize(cases, clinic_prompt, clinic_tokenizer, tmp_path)
            assert made.digest != tokens.digest
            assert_same(made, tokenize(cases, clinic_prompt, clinic_tokenizer, None))


def test_a_tokenizer_that_reads_only_the_last_case_otherwise_is_another(cases, tmp_path):
    spelled = json.loads(tokenizer_json())
    odd = dataclasses.replace(cases[0], case_prompt="A quagfever of old.")
    made = []
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(spelled))
        (tmp_path / name / "chat_template.jinja").write_text(CHATML)
        tokenizer = Tokenizer.load(tmp_path / name)
        made.append(tokenize([cases[0], odd], PROMPT, tokenizer, tmp_path / "kept"))
        token = {**spelled["added_tokens"][-1], "id": tokenizer.vocab_size, "content": "quagfever"}
        spelled["added_tokens"].append(token)
    np.testing.assert_array_equal(made[0][0].ids, made[1][0].ids)
    assert made[1].lengths[1] < made[0].lengths[1]


def test_a_damaged_file_is_made_anew_in_one_line(
    tokens, cases, clinic_prompt, clinic_tokenizer, tmp_path, capsys
):
    tokenize(cases, clinic_prompt, clinic_tokenizer, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    capsys.readouterr()
    assert_same(tokenize(cases, clinic_prompt, clinic_tokenizer, tmp_path), tokens)
    (said,) = capsys.readouterr().out.splitlines()
    assert str(file) in said


def test_what_cannot_be_tokenized_is_named_and_leaves_no_file_and_no_thread(
    cases, clinic_prompt, clinic_tokenizer, tmp_path
):
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    without_template = Tokenizer.load(tmp_path)
    named = cases[0].pmcid or cases[0].fingerprint[:12]
    with pytest.raises(McrError, match=f"^case {named} cannot be tokenized: .*no chat template"):
        tokenize(cases, clinic_prompt, without_template, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()

    class Broken(Lazy):
        def __getitem__(self, row):
            if row == 7:
                raise McrError("split train of a fictional folder, row 8, cannot be read")
            return super().__getitem__(row)

    with pytest.raises(McrError, match="row 8, cannot be read"):
        tokenize(Broken(cases), clinic_prompt, clinic_tokenizer, tmp_path / "kept")
    for thread in grain_threads():
        thread.join(60)
    assert not grain_threads()


def test_some_of_the_tokens_are_tokens(tokens):
    some = tokens.select([5, 2])
    assert [e.fingerprint for e in some] == [tokens.fingerprints[5], tokens.fingerprints[2]]
    np.testing.assert_array_equal(some[1].ids, tokens[2].ids)
    np.testing.assert_array_equal(some[-1].ids, tokens[2].ids)
    assert some.highest == max(tokens[i].ids.max() for i in (2, 5))
    assert_same(tokens[2:4], tokens.select([2, 3]))
    assert_same(tokens[:], tokens)
    with pytest.raises(IndexError):
        tokens[len(tokens)]
    with pytest.raises(IndexError):
        tokens[-len(tokens) - 1]


def test_the_digest_tells_any_difference_and_no_other(tokens):
    def changed(**arrays):
        e = tokens[0]
        parts = {"ids": e.ids, "trained": e.trained, "fingerprints": [e.fingerprint]} | arrays
        return Tokens(starts=np.zeros(1, int), lengths=tokens.lengths[:1], **parts).digest

    same = tokens[:1].digest
    assert changed() == same
    assert changed(fingerprints=["0" * 64]) != same
    assert changed(ids=tokens[0].ids[::-1]) != same
    assert changed(trained=~tokens[0].trained) != same
    assert tokens[:2].digest != tokens[1::-1].digest


@pytest.mark.promise("Examples longer than a row are dropped and reported, or the row length grows")
def test_what_does_not_fit_a_row_is_left_out_whole_and_told(tokens):
    middle = sorted(tokens.lengths.tolist())[len(tokens) // 2]
    found = fit(tokens, middle, "drop")
    assert found.row_tokens == middle
    kept = [i for i in range(len(tokens)) if tokens.lengths[i] <= middle]
    assert_same(found.tokens, tokens.select(kept))
    left_out = [i for i in range(len(tokens)) if tokens.lengths[i] > middle]
    assert left_out
    assert found.dropped == tuple((tokens.fingerprints[i], tokens.lengths[i]) for i in left_out)


@pytest.mark.parametrize("row_tokens", [9, 10_000])
def test_rows_that_grow_leave_nothing_out(tokens, row_tokens):
    found = fit(tokens, row_tokens, "keep")
    assert_same(found.tokens, tokens)
    assert found.dropped == ()
    longest = tokens.lengths.max()
    if row_tokens > longest:
        assert found.row_tokens == row_tokens
    else:
        assert found.row_tokens % 128 == 0
        assert longest <= found.row_tokens < longest + 128


def test_rows_that_hold_nothing_are_refused(tokens, clinic_prompt, clinic_tokenizer):
    shortest = tokens.lengths.min()
    with pytest.raises(McrError, match=f"row_tokens=9; the shortest has {shortest} tokens"):
        fit(tokens, 9, "drop")
    nothing = tokenize([], clinic_prompt, clinic_tokenizer, None)
    assert (len(nothing), nothing.highest) == (0, -1)
    for too_long in ("drop", "keep"):
        with pytest.raises(McrError, match="no example fits"):
            fit(nothing, 128, too_long)


def test_a_target_is_rendered_in_one_place(tokens, cases, clinic_tokenizer, clinic_prompt):
    said = example_lib.conversation(cases[3], clinic_prompt)[-1]["content"]
    found = tokens[3]
    assert clinic_tokenizer.decode(found.ids[found.trained].tolist()) == said
