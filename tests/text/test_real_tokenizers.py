"""Six published tokenizers read, write and lay out chats as transformers does.

What transformers makes is in golden/real_tokenizers.json as digests, and compared in full where
`make reference` was run. To write the digests anew: MCR_GOLDEN=write, with that environment.
"""

import hashlib
import json
import os
import pathlib
import subprocess

import pytest
import reference_tokens
import registries

from mcr_jax.errors import McrError
from mcr_jax.text.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = pathlib.Path(
    os.environ.get("MCR_REFERENCE_PYTHON", ROOT / ".venv-reference" / "bin" / "python")
)
GOLDEN = pathlib.Path(__file__).parent / "golden" / "real_tokenizers.json"

pytestmark = pytest.mark.slow


def ours(folder: pathlib.Path) -> dict[str, list]:
    """What `reference_tokens.observed` returns, by the project's tokenizer."""
    tokenizer = Tokenizer.load(folder)
    ids = [
        tokenizer.encode(text)
        for text in reference_tokens.texts(
            reference_tokens.added((folder / "tokenizer.json").read_bytes())
        )
    ]
    has_template = "chat_template" in json.loads((folder / "tokenizer_config.json").read_bytes())
    prompts = reference_tokens.conversations() if has_template else ()
    return {
        "ids": ids,
        "texts": list(map(tokenizer.decode, ids)),
        "drawn": list(map(tokenizer.decode, reference_tokens.id_lists(tokenizer.vocab_size))),
        "prompts": list(map(tokenizer.encode_prompt, prompts)),
    }


def digests(observed: dict[str, list]) -> dict[str, str]:
    return {
        kind: hashlib.sha256(json.dumps(values).encode()).hexdigest()
        for kind, values in observed.items()
    }


@pytest.mark.parametrize("name", registries.TOKENIZERS)
def test_ten_thousand_strings_and_three_hundred_chats_are_read_as_by_transformers(name, tmp_path):
    folder = registries.tokenizer(name)
    made = ours(folder)
    if PYTHON.exists():
        script = pathlib.Path(reference_tokens.__file__)
        subprocess.run(
            [PYTHON, script, tmp_path, folder],
            check=True,
            capture_output=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        theirs = json.loads((tmp_path / f"{folder.name}.json").read_text("utf-8"))
        for kind, values in theirs.items():
            differ = [n for n, (a, b) in enumerate(zip(made[kind], values, strict=True)) if a != b]
            assert not differ, (kind, [(made[kind][n], values[n]) for n in differ[:3]])
        if os.environ.get("MCR_GOLDEN") == "write":
            golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
            golden[name] = digests(theirs)
            GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    assert digests(made) == json.loads(GOLDEN.read_text())[name]


@pytest.mark.parametrize("name", ["gemma3", "llama3", "llama3_1", "qwen3", "deepseek_v3"])
def test_an_answer_follows_the_prompt_and_ends_with_the_model_s_end_of_turn(name):
    tokenizer = Tokenizer.load(registries.tokenizer(name))
    answer = {"role": "assistant", "content": "<think>\nMoons.\n</think>\n<answer>Rime</answer>"}
    for messages in list(reference_tokens.conversations())[:20]:
        encoded = tokenizer.encode_conversation([*messages, answer])
        start, _ = encoded.spans[-1]
        assert list(encoded.ids[:start]) == tokenizer.encode_prompt(messages)
        assert encoded.ids[-1] == tokenizer.eos_ids[0]
        assert tokenizer.decode(encoded.ids[start:]).endswith(
            "Moons.\n</think>\n<answer>Rime</answer>"
        )


def test_a_tokenizer_without_a_template_says_so():
    with pytest.raises(McrError, match="no chat template"):
        Tokenizer.load(registries.tokenizer("gptoss")).encode_prompt(
            [{"role": "user", "content": "x"}]
        )
