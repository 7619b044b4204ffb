"""Writes golden/chat.json: what transformers makes of `chat_cases`, and of the DeepSeek tokenizer.

    PYTHON tests/text/make_chat_golden.py

PYTHON is one that has transformers 4 or 5; both write the same file. DeepSeek's tokenizer is read
where the tests find theirs; where it is absent, its part of the file stays as it is.
"""

import datetime
import gzip
import json
import pathlib
import shutil
import tempfile

import jinja2
from chat_cases import CONFIGS, CONVERSATIONS, TEMPLATE_OPTIONS, TODAY, write_folder
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

GOLDEN = pathlib.Path(__file__).with_name("golden") / "chat.json"
DEEPSEEK = pathlib.Path(__file__).parents[3] / "shared/data/tokenizers/deepseek_r1"


class _Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(*TODAY)


def rendered(folder, options=None):
    """For each conversation: text and ids, with and without the generation prompt, or an error."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    made = {}
    for name, messages in CONVERSATIONS.items():
        made[name] = {}
        for kind in ("prompt", "whole"):
            given = {"add_generation_prompt": kind == "prompt", **(options or {})}
            try:
                text = tokenizer.apply_chat_template(messages, tokenize=False, **given)
                ids = tokenizer.apply_chat_template(messages, return_dict=True, **given)
                made[name][kind] = {"text": text, "ids": ids["input_ids"]}
            except jinja2.TemplateError as error:
                made[name][kind] = {"error": str(error)}
    return made


def main():
    chat_template_utils.datetime = _Clock
    golden = json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for name in CONFIGS:
            golden[name] = rendered(write_folder(scratch / name, name))
        for name, options in TEMPLATE_OPTIONS.items():
            golden[f"{name} with options"] = rendered(scratch / name, options)
        if DEEPSEEK.is_dir():
            packed = (DEEPSEEK / "tokenizer.json.gz").read_bytes()
            (scratch / "tokenizer.json").write_bytes(gzip.decompress(packed))
            shutil.copy(DEEPSEEK / "tokenizer_config.json", scratch)
            golden["deepseek"] = rendered(scratch)
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = (f"{json.dumps(name)}: {json.dumps(golden[name])}" for name in sorted(golden))
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
