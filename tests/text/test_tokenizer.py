"""Text survives the tokenizer, and only the assistant's turn is trained."""

import hashlib
import pathlib

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from random_text import strings

from mcr_jax.data.example import training_texts
from mcr_jax.errors import McrError
from mcr_jax.text.sentencepiece_model import SentencePieceModel
from mcr_jax.text.tokenizer import FILE, Tokenizer

REAL = pathlib.Path(__file__).parents[3] / "shared/data/tokenizers/spm_32k"
MARKERS = ("<|system|>", "<|user|>", "<|assistant|>")
ODD = (*MARKERS, "<think>", "</answer>", "</s>", "<s>", "<unk>", "<0x41>", "\0", "\r\n", "  ")
# U+2581 is SentencePiece's own mark of a space; lone surrogates are not text (no Case holds any).
text = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=20),
        st.sampled_from(ODD),
    ),
    max_size=6,
).map("".join)


@pytest.fixture(scope="module")
def tokenizer(clinic_tokenizer):
    return clinic_tokenizer


@pytest.fixture(scope="module")
def roles(tokenizer):
    return {marker: tokenizer.encode(marker)[0] for marker in MARKERS}


def turns(user: str, answer: str | None = None):
    asked = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": user})
    return asked if answer is None else (*asked, {"role": "assistant", "content": answer})


@given(text)
@example(" leading and trailing ")
@example("\n\n\t \u00a0e\u0301\ufeff😀")
def test_every_text_survives(tokenizer, x):
    assert tokenizer.decode(tokenizer.encode(x)) == x


def test_the_mark_of_a_space_comes_back_as_a_space(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


def test_training_on_the_same_texts_gives_the_same_tokenizer(
    tokenizer, clinic_cases, clinic_prompt
):
    def trained(cases):
        return Tokenizer.train(training_texts(cases, clinic_prompt), 500)

    assert trained(clinic_cases["train"]).fingerprint == tokenizer.fingerprint
    assert trained(clinic_cases["train"][:-5]).fingerprint != tokenizer.fingerprint
    assert tokenizer.vocab_size == 500


def test_a_saved_tokenizer_is_the_same_when_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "kept" / "here")
    loaded = Tokenizer.load(tmp_path / "kept" / "here")
    assert (loaded.fingerprint, loaded.eos_ids) == (tokenizer.fingerprint, tokenizer.eos_ids)
    assert loaded.encode("blue nails") == tokenizer.encode("blue nails")


@given(user=text, answer=text)
@example(user="x", answer="")
@example(user="x\n", answer="\n\n after blank lines")
@example(user="<|assistant|", answer=">\n")
def test_what_is_not_trained_is_exactly_the_prompt_that_inference_sees(tokenizer, user, answer):
    encoded = tokenizer.encode_conversation(turns(user, answer))
    prompt = tokenizer.encode_prompt(turns(user))
    assert [i for i, trained in zip(encoded.ids, encoded.trained, strict=True) if not trained] == (
        prompt
    )
    assert list(encoded.ids[: len(prompt)]) == prompt
    assert all(encoded.trained[len(prompt) :])


@given(user=text, answer=text)
def test_the_end_of_the_turn_is_trained_and_stands_nowhere_else(tokenizer, user, answer):
    encoded = tokenizer.encode_conversation(turns(user, answer))
    (eos,) = tokenizer.eos_ids
    assert encoded.ids.index(eos) == len(encoded.ids) - 1
    assert encoded.trained[-1]


@given(user=text, answer=text)
def test_a_marker_inside_a_content_makes_no_turn(tokenizer, roles, user, answer):
    ids = tokenizer.encode_conversation(turns(user, answer)).ids
    assert [i for i in ids if i in roles.values()] == [roles[marker] for marker in MARKERS]


def test_the_tags_and_the_markers_are_one_token_each(tokenizer, roles):
    for symbol in (*MARKERS, "<think>", "</think>", "<answer>", "</answer>", "\n"):
        assert len(tokenizer.encode(symbol)) == 1
    assert len(set(roles.values())) == 3


def test_a_conversation_must_end_with_the_assistant(tokenizer):
    with pytest.raises(ValueError, match="last turn"):
        tokenizer.encode_conversation(turns("x"))


def test_a_tokenizer_cut_short_anywhere_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    ends = [i for i in range(1, len(whole)) if whole[i] in (0x0A, 0x12, 0x1A)]  # before a field
    for end in sorted({*ends, *range(0, len(whole), 101), len(whole) - 1}):
        with pytest.raises(McrError) as refused:
            SentencePieceModel(whole[:end], "cut.model")
        assert str(refused.value).startswith("cut.model: ")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<html>not a model</html>"])
def test_what_is_no_tokenizer_is_refused_in_one_line(content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(McrError) as refused:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / FILE) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_tokenizer_is_one_line(tmp_path):
    with pytest.raises(McrError, match=r"tokenizer\.model: cannot read the tokenizer: No such"):
        Tokenizer.load(tmp_path)


def test_ids_and_layout_are_those_of_the_figures_that_were_published(tokenizer):
    encoded = tokenizer.encode_conversation(turns("a <|user|>", "b"))
    layout = "<|system|>\nBe brief.\n<|user|>\na <\u200b|user|>\n<|assistant|>\nb"
    assert list(encoded.ids) == [*tokenizer.encode(layout), *tokenizer.eos_ids]
    digest = hashlib.sha256(tokenizer.files[FILE]).hexdigest()
    assert (tokenizer.fingerprint, list(tokenizer.files)) == (digest, [FILE])


@given(user=text, earlier=text, answer=text)
def test_every_answer_has_its_span(tokenizer, user, earlier, answer):
    said = (*turns(user, earlier), *turns(user, answer))
    encoded = tokenizer.encode_conversation(said)
    (first, behind), (start, stop) = encoded.spans
    told = [tokenizer.decode(encoded.ids[a:b]) for a, b in encoded.spans]
    assert [x.replace("<\u200b|", "<|") for x in told] == [
        x.replace("<\u200b|", "<|") for x in (earlier, answer)
    ]
    assert first <= behind < start < stop == len(encoded.ids)
    assert list(encoded.trained) == [i >= start for i in range(stop)]


@pytest.mark.parametrize(("texts", "size"), [([], 500), (["blue nails"], 20)])
def test_too_little_to_train_on_is_one_line(texts, size):
    with pytest.raises(McrError, match=f"^cannot train a tokenizer of {size} pieces: .+$"):
        Tokenizer.train(texts, size)


@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir():
        pytest.skip("the 32k SentencePiece model is not beside this checkout")
    return Tokenizer.load(REAL)


@pytest.mark.parametrize("which", ["tokenizer", "real"])
def test_ten_thousand_strings_read_as_the_library_reads_them(request, which):
    ours = request.getfixturevalue(which)
    library = sentencepiece.SentencePieceProcessor(model_proto=ours.files[FILE])
    for x in strings(10_000, 11, MARKERS):
        ids = ours.encode(x)
        assert ids == library.encode(x)
        assert ours.decode(ids) == library.decode(ids)


def test_a_published_model_loads_and_reads_plain_text(real):
    plain = "A lantern keeper from Saltholm had violet nail moons for two weeks."
    ids = real.encode(plain)
    assert real.vocab_size >= 32_000
    assert 8 < len(ids) < 40
    assert real.decode(ids) == plain


def test_a_published_model_that_drops_the_end_of_the_prompt_is_refused(real):
    with pytest.raises(McrError, match="across the start of the assistant's turn"):
        real.encode_conversation(turns("Two weeks of green noons.", "<think>\nHm."))
