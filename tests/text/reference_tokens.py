"""What transformers makes of random strings and conversations with the tokenizers of some folders.

    PYTHON tests/text/reference_tokens.py OUT FOLDER...

writes OUT/NAME.json for each folder. PYTHON has transformers (`make reference`); the strings and
conversations are also what the test gives to the project's own tokenizer.
"""

import json
import pathlib
import random
import re
import sys
from collections.abc import Iterator

import random_text

STRINGS, CONVERSATIONS = 10_000, 300
_TAGS = re.compile("</?(?:think|answer)>")


def texts(extra: tuple[str, ...]) -> list[str]:
    """10,000 random strings; `extra` are added tokens to put among their pieces."""
    return list(random_text.strings(STRINGS, 11, extra))


def conversations() -> Iterator[list[dict[str, str]]]:
    """300 conversations that end with a question; some have a system turn.

    No content has a "<" but in a completion's tags: what could be a control token is made inert
    here, and read as one by transformers.
    """
    draw = random.Random(12)
    inert = (t for t in random_text.strings(10**9, 13) if "<" not in _TAGS.sub("", t) and t.strip())
    for _ in range(CONVERSATIONS):
        roles = ["user", *("assistant", "user") * draw.randrange(3)]
        if draw.random() < 0.3:
            roles.insert(0, "system")
        yield [{"role": role, "content": next(inert)} for role in roles]


def id_lists(vocab_size: int) -> Iterator[list[int]]:
    """Ids in any order, as a model may draw them: halves of characters and unknown ids too."""
    draw = random.Random(14)
    for _ in range(1000):
        yield [draw.randrange(vocab_size) for _ in range(draw.randrange(20))]


def added(tokenizer_json: bytes) -> tuple[str, ...]:
    """The first nine added tokens of a tokenizer.json, by their ids."""
    found = json.loads(tokenizer_json)["added_tokens"]
    return tuple(t["content"] for t in sorted(found, key=lambda t: t["id"])[:9])


def observed(folder: pathlib.Path) -> dict[str, list]:
    """Ids and decoded texts of strings, decoded texts of ids, and ids of prompts."""
    import jinja2
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    special = set(tokenizer.all_special_ids)
    special |= {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    special -= {tokenizer.get_vocab().get(tag) for tag in ("<think>", "</think>")}

    def decode(ids: list[int]) -> str:
        kept = [i for i in ids if i not in special]
        return tokenizer.decode(kept, skip_special_tokens=False)

    encoded = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in texts(added((folder / "tokenizer.json").read_bytes()))
    ]
    prompts = []
    for messages in conversations() if tokenizer.chat_template else ():
        try:
            given = {"add_generation_prompt": True, "return_dict": True}
            prompts.append(tokenizer.apply_chat_template(messages, **given)["input_ids"])
        except jinja2.TemplateError as error:
            prompts.append(str(error))
    return {
        "ids": encoded,
        "texts": [decode(ids) for ids in encoded],
        "drawn": [decode(ids) for ids in id_lists(len(tokenizer))],
        "prompts": prompts,
    }


def main() -> None:
    out, *folders = map(pathlib.Path, sys.argv[1:])
    for folder in folders:
        made = json.dumps(observed(folder))
        (out / f"{folder.name}.json").write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
