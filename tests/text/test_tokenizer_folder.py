"""A folder is read as transformers reads it, kept whole, and what is broken in it is named."""

import datetime
import json

import pytest
from chat_cases import CHATML, CUT, HEADERS, write_folder

from mcr_jax.errors import McrError
from mcr_jax.text.tokenizer import Tokenizer

ASKED = [{"role": "user", "content": "Violet nails?"}]
JINJA = "chat_template.jinja"
CONFIG = "tokenizer_config.json"


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "folder", "chatml")


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def said(folder):
    tokenizer = Tokenizer.load(folder)
    return tokenizer.decode(tokenizer.encode_prompt(ASKED))


def test_the_jinja_file_comes_before_the_config_and_that_before_the_processors_file(folder):
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "third<|im_end|>"}))
    (folder / JINJA).write_text("first<|im_end|>")
    edit(folder / CONFIG, chat_template="second<|im_end|>")
    assert said(folder) == "first"
    (folder / JINJA).unlink()
    assert said(folder) == "second"
    edit(folder / CONFIG, chat_template=None)
    assert said(folder) == "third"


def test_without_a_template_text_is_read_and_conversations_are_refused(folder):
    edit(folder / CONFIG, chat_template=None)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode("Violet")) == "Violet"
    assert [tokenizer.decode([i]) for i in tokenizer.eos_ids] == [""]
    for call in (tokenizer.encode_prompt, tokenizer.encode_conversation):
        with pytest.raises(McrError, match=r"tokenizer.json: no chat template; put the model's"):
            call(ASKED)


def test_a_template_beside_a_sentencepiece_model_alone_is_refused(clinic_tokenizer, tmp_path):
    clinic_tokenizer.save(tmp_path)
    (tmp_path / JINJA).write_text(CHATML)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("nails") == clinic_tokenizer.encode("nails")
    with pytest.raises(McrError, match=r"jinja: a chat template needs a tokenizer.json beside it"):
        tokenizer.encode_prompt(ASKED)


@pytest.mark.parametrize("declared", [5, [7, 5], None, []])
def test_an_answer_ends_with_the_turn_the_eos_token_or_what_generation_ends_with(folder, declared):
    edit(folder / CONFIG, eos_token="<|end_of_text|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": declared}))
    tokenizer = Tokenizer.load(folder)
    (end,), (eos,) = tokenizer.encode("<|im_end|>"), tokenizer.encode("<|end_of_text|>")
    more = declared if isinstance(declared, list) else [declared] if declared else []
    assert tokenizer.eos_ids[:2] == (end, eos)
    assert set(tokenizer.eos_ids) == {end, eos, *more}
    assert len(set(tokenizer.eos_ids)) == len(tokenizer.eos_ids)


@pytest.mark.parametrize("declared", ["2", [1, None], -1, True, 1.5, 10**6])
def test_an_eos_token_id_that_is_no_id_is_refused(folder, declared):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": declared}))
    with pytest.raises(McrError, match=r"generation_config.json: .*eos_token_id"):
        Tokenizer.load(folder)


def test_declared_tokens_are_added_with_their_ids_and_flags(folder):
    size = Tokenizer.load(folder).vocab_size
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    declared = {  # by id, in any order
        str(size + 1): {"content": "<b>", "special": True, **flags},
        str(size): {"content": "<a>", "special": False, **flags},
    }
    edit(folder / CONFIG, added_tokens_decoder=declared, additional_special_tokens=["<c>", "<a>"])
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("<a><b><c>") == [size, size + 1, size + 2]
    assert tokenizer.decode([size, size + 1, size + 2]) == ""
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<gone>"}))
    assert (
        Tokenizer.load(folder).vocab_size == size + 3
    )  # the map is read where nothing is declared


def test_the_special_tokens_map_is_read_where_the_config_declares_no_tokens(folder):
    (folder / JINJA).write_text("{{ bos_token }}|{{ pad_token }}|{{ cls_token }}{{ boi_token }}")
    edit(folder / CONFIG, bos_token="<|eot|>", pad_token="<a>")
    mapped = {
        "bos_token": {"content": "<b>", "lstrip": False},
        "extra_special_tokens": {"boi_token": "<c>"},
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(mapped))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode_prompt(ASKED) == tokenizer.encode("<b>|<a>|<c>")
    assert len(tokenizer.encode("<a><b><c>")) == 3


def test_what_changes_ids_changes_the_fingerprint_and_nothing_else_does(folder):
    made = {"first": Tokenizer.load(folder).fingerprint}
    edit(folder / CONFIG, model_max_length=7)
    (folder / "vocab.json").write_text("{}")
    assert Tokenizer.load(folder).fingerprint == made["first"]
    made["options"] = Tokenizer.load(folder, {"enable_thinking": True}).fingerprint
    (folder / JINJA).write_text(CUT)
    made["template"] = Tokenizer.load(folder).fingerprint
    edit(folder / CONFIG, bos_token="<bos>")
    made["special token"] = Tokenizer.load(folder).fingerprint
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    made["end"] = Tokenizer.load(folder).fingerprint
    text = (folder / "tokenizer.json").read_text("utf-8")
    (folder / "tokenizer.json").write_text(text.replace("<tool>", "<fool>"), "utf-8")
    made["tokens"] = Tokenizer.load(folder).fingerprint
    assert len(set(made.values())) == len(made)


def test_a_template_that_tells_the_date_has_one_fingerprint_a_day_unless_it_is_given(folder):
    (folder / JINJA).write_text(HEADERS)

    def loaded(day, **options):
        return Tokenizer.load(folder, options, datetime.datetime(2031, 7, day)).fingerprint

    assert loaded(4) == loaded(4) != loaded(5)
    assert loaded(4, date_string="4 Jul 2031") == loaded(5, date_string="4 Jul 2031")


def test_a_saved_folder_holds_every_file_and_reads_the_same(folder, tmp_path):
    (folder / JINJA).write_text(HEADERS)
    (folder / "generation_config.json").write_text('{"eos_token_id": [3]}')
    (folder / "merges.txt").write_text("a b")
    (folder / "model.safetensors").write_text("not the tokenizer's")
    tokenizer = Tokenizer.load(folder)
    for save in (tokenizer.save, tokenizer.save_hf):
        save(tmp_path / "kept" / "here")
        kept = {path.name: path.read_bytes() for path in (tmp_path / "kept" / "here").iterdir()}
        assert kept == {n.name: n.read_bytes() for n in folder.iterdir() if "model" not in n.name}
        again = Tokenizer.load(tmp_path / "kept" / "here")
        assert (again.fingerprint, again.eos_ids) == (tokenizer.fingerprint, tokenizer.eos_ids)


@pytest.mark.parametrize("name", [CONFIG, "generation_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[]", b"\xff\xfe", b"null"])
def test_a_broken_file_is_named_in_one_line(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(McrError, match=f"{name}: not ") as refused:
        Tokenizer.load(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"chat_template": [{"name": "rag", "template": "x"}]}, "no chat_template in it is named"),
        ({"chat_template": [{"name": [], "template": "x"}, 3]}, "no chat_template in it is named"),
        ({"chat_template": 3}, "no chat_template in it is named default"),
        ({"chat_template": "{% if %}"}, "not a chat template"),
        ({"chat_template": "{{ raise_exception('No.') }}"}, "the chat template fails: No."),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "broken added_tokens_decoder"),
        ({"added_tokens_decoder": {"1": "a"}}, "broken added_tokens_decoder"),
        ({"added_tokens_decoder": [1]}, "broken added_tokens_decoder"),
    ],
)
def test_a_config_that_cannot_be_meant_is_named(folder, values, said):
    edit(folder / CONFIG, **values)
    with pytest.raises(McrError, match=f"tokenizer_config.json: {said}"):
        Tokenizer.load(folder)


def test_a_file_that_cannot_be_read_or_written_is_named(folder, tmp_path):
    (folder / JINJA).mkdir()
    with pytest.raises(McrError, match=r"chat_template.jinja: cannot read the tokenizer: Is a dir"):
        Tokenizer.load(folder)
    (folder / JINJA).rmdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(McrError, match=r"tokenizer.json: cannot write: File exists"):
        Tokenizer.load(folder).save(tmp_path / "file")
