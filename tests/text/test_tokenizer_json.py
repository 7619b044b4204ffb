"""A tokenizer.json reads as its library reads it, whatever was saved with it."""

import gzip
import json
import pathlib

import pytest
from chat_cases import ADDED, SPECIAL, tokenizer_json
from random_text import strings
from tokenizers import AddedToken, Tokenizer, processors

from mcr_jax.errors import McrError
from mcr_jax.text.tokenizer_json import TokenizerJson

DEEPSEEK = pathlib.Path(__file__).parents[3] / "shared/data/tokenizers/deepseek_r1"


@pytest.fixture(scope="module", params=["small", "deepseek"])
def content(request):
    if request.param == "small":
        return tokenizer_json().encode()
    if not DEEPSEEK.is_dir():
        pytest.skip("the DeepSeek tokenizer is not beside this checkout")
    return gzip.decompress((DEEPSEEK / "tokenizer.json.gz").read_bytes())


@pytest.fixture
def small():
    return json.loads(tokenizer_json())


def read(value, *args):
    return TokenizerJson(json.dumps(value).encode(), "some/tokenizer.json", *args)


def test_ten_thousand_strings_read_as_the_library_reads_them(content):
    ours, library = TokenizerJson(content, "tokenizer.json"), Tokenizer.from_str(content.decode())
    for text in strings(10_000, 7, tuple(ours.added)[:9]):
        expected = library.encode(text, add_special_tokens=False)
        ids, offsets = ours.encode_with_offsets(text)
        assert ids == ours.encode(text) == expected.ids
        assert ours.decode(ids) == library.decode(ids, skip_special_tokens=True)
        assert all(0 <= begin <= end <= len(text) for begin, end in offsets)


def test_any_ids_decode_as_the_library_decodes_them(content):
    ours, library = TokenizerJson(content, "tokenizer.json"), Tokenizer.from_str(content.decode())
    for first in range(0, ours.vocab_size, 97):
        ids = [*range(first, first + 5), 10**6]  # models have rows for ids that no token has
        assert ours.decode(ids) == library.decode(ids, skip_special_tokens=True)


def test_sizes_and_added_tokens_are_those_of_the_file(content):
    ours = TokenizerJson(content, "tokenizer.json")
    file = json.loads(content)
    added = {token["content"]: token["id"] for token in file["added_tokens"]}
    assert dict(ours.added) == added
    assert ours.special == {t["content"] for t in file["added_tokens"] if t["special"]}
    assert ours.vocab_size == 1 + max(*file["model"]["vocab"].values(), *added.values())


def test_a_length_saved_with_it_neither_cuts_nor_pads(small):
    plain = read(small)
    library = Tokenizer.from_str(json.dumps(small))
    library.enable_truncation(4)
    library.enable_padding(length=64)
    cut = TokenizerJson(library.to_str().encode(), "tokenizer.json")
    for text in ("", "Violet nails for weeks and weeks."):
        assert cut.encode(text) == plain.encode(text) != library.encode(text).ids


def test_no_id_is_added_and_no_offset_trimmed_by_a_post_processor(small):
    plain = read(small)
    library = Tokenizer.from_str(json.dumps(small))
    begin = processors.TemplateProcessing(
        single="<|bos|> $0", special_tokens=[("<|bos|>", library.token_to_id("<|bos|>"))]
    )
    library.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), begin])
    ours = TokenizerJson(library.to_str().encode(), "tokenizer.json")
    text = "Violet nails  for weeks "
    ids, offsets = ours.encode_with_offsets(text)
    assert ids == plain.encode(text)
    assert "".join(text[begin:end] for begin, end in offsets) == text


def test_special_tokens_have_no_text_and_the_tags_of_a_completion_do(small):
    for token in small["added_tokens"]:
        token["special"] = True
    ours = read(small)
    for text in ("<think>a</think>", "<|im_start|><think>a</think><|im_end|>"):
        assert ours.decode(ours.encode(text)) == "<think>a</think>"


def test_tokens_declared_elsewhere_are_added_once_with_their_flags(small):
    declared = (AddedToken("</think>", special=True, lstrip=True), AddedToken("<new>"))
    ours = read(small, declared, ("<newer>", "<|im_end|>", "<new>"))
    assert ours.vocab_size == read(small).vocab_size + 2
    assert "</think>" in ours.special
    assert "<newer>" in ours.special
    assert "<new>" not in ours.special
    assert ours.encode("<new>  </think>") == [ours.added["<new>"], ours.added["</think>"]]
    assert {*SPECIAL, *ADDED, "<new>", "<newer>"} == set(ours.added)


def test_a_file_cut_short_anywhere_is_refused():
    whole = tokenizer_json().encode()
    for end in (*range(0, len(whole), 211), len(whole) - 1):
        with pytest.raises(McrError, match=r"^some/tokenizer.json: not a tokenizer, or cut short"):
            TokenizerJson(whole[:end], "some/tokenizer.json")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{}", b"[]", b"<html></html>", b"\0" * 9])
def test_what_is_no_tokenizer_is_refused_in_one_line(content):
    with pytest.raises(McrError, match=r"^some/tokenizer.json: not .+") as refused:
        TokenizerJson(content, "some/tokenizer.json")
    assert "\n" not in str(refused.value)


def test_a_tokenizer_without_tokens_is_refused(small):
    small["added_tokens"], small["model"]["vocab"], small["model"]["merges"] = [], {}, []
    with pytest.raises(McrError, match=r"^some/tokenizer.json: this tokenizer has no tokens"):
        read(small)
