"""A tokenizer that was trained here reads the same from the files that transformers loads."""

import itertools
import json
import pathlib
import re

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from random_text import strings

from mcr_jax.errors import McrError
from mcr_jax.text import sentencepiece_proto as spm
from mcr_jax.text.tokenizer import Tokenizer

REAL = pathlib.Path(__file__).parents[3] / "shared/data/tokenizers/spm_32k"
MARKERS = ("<|system|>", "<|user|>", "<|assistant|>")
text = st.lists(st.text(max_size=20) | st.sampled_from(MARKERS), max_size=4).map("".join)


@pytest.fixture(scope="module")
def folder(clinic_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported")
    clinic_tokenizer.save_hf(path)
    return path


@pytest.fixture(scope="module")
def exported(folder):
    return Tokenizer.load(folder)


def test_ten_thousand_strings_read_the_same_in_both_libraries(clinic_tokenizer, folder):
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The names of control pieces are text to the one library and control tokens to the other.
    plain = (x for x in strings(20_000, 13, MARKERS) if not re.search("</?s>|<unk>", x))
    for x in itertools.islice(plain, 10_000):
        ids = library.encode(x, add_special_tokens=False).ids
        assert ids == clinic_tokenizer.encode(x)
        assert library.decode(ids) == clinic_tokenizer.decode(ids)
    assert next(plain)


@given(system=text, user=text, answer=text)
def test_conversations_have_the_same_ids(clinic_tokenizer, exported, system, user, answer):
    roles = ("system", "user", "assistant", "user", "assistant")
    contents = (system, user, answer, user, answer)
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    assert exported.encode_prompt(messages[:-1]) == clinic_tokenizer.encode_prompt(messages[:-1])
    theirs, ours = (t.encode_conversation(messages) for t in (exported, clinic_tokenizer))
    assert (theirs.ids, theirs.trained) == (ours.ids, ours.trained)


def test_sizes_ends_and_files_are_carried(clinic_tokenizer, exported, folder):
    assert exported.vocab_size == clinic_tokenizer.vocab_size
    assert exported.eos_ids == clinic_tokenizer.eos_ids
    assert (folder / "tokenizer.model").read_bytes() == clinic_tokenizer.files["tokenizer.model"]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "</s>"


def test_a_model_that_changes_text_before_it_reads_it_is_refused(tmp_path):
    if not REAL.is_dir():
        pytest.skip("the 32k SentencePiece model is not beside this checkout")
    with pytest.raises(McrError, match="only a tokenizer that was trained here"):
        Tokenizer.load(REAL).save_hf(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_fields_of_a_model_are_those_that_the_library_reads(clinic_tokenizer):
    generated = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    serialized = clinic_tokenizer.files["tokenizer.model"]
    ours, theirs = (made.ModelProto.FromString(serialized) for made in (spm, generated))
    for message in ("trainer_spec", "normalizer_spec"):
        for field in getattr(ours, message).DESCRIPTOR.fields_by_name:
            assert getattr(getattr(ours, message), field) == getattr(
                getattr(theirs, message), field
            )
        empty = getattr(spm.ModelProto(), message), getattr(generated.ModelProto(), message)
        for field in empty[0].DESCRIPTOR.fields_by_name:  # the defaults
            assert getattr(empty[0], field) == getattr(empty[1], field)
    told = [[(p.piece, p.score, p.type) for p in made.pieces] for made in (ours, theirs)]
    assert told[0] == told[1]
    assert ours.HasField("normalizer_spec") and not spm.ModelProto().HasField("normalizer_spec")


def test_no_module_here_needs_the_protobuf_that_the_library_was_generated_with():
    sources = pathlib.Path(spm.__file__).parents[1].rglob("*.py")
    assert not [path for path in sources if "sentencepiece_model_pb2" in path.read_text()]
