"""Every command and every line of code of README.md and docs/ runs unchanged.

The blocks of a page run in order in one shell, with fictional cases from a local Hub, a tiny model
and a local Gemini. `mcr` is the real one; calls with a config get small settings. `pip`, `make` and
`hf` are stand-ins that check their arguments.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from mcr_jax.build.prepare import build
from mcr_jax.cases import write_jsonl

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
# In the order of the site: a page may use the workdirs of those before it.
PAGES = [
    "README.md",
    *(
        f"docs/{page}"
        for page in (
            "evaluate.md",
            "judging.md",
            "cost.md",
            "data.md",
            "harnesses.md",
            "training.md",
            "stitching.md",
            "sampling.md",
            "models.md",
            "commands.md",
            "config.md",
        )
    ),
]
LANGUAGES = {"sh", "python", "text"}
SMALL = {
    "train.epochs": 0.0,
    "train.steps": 2,
    "train.rows": 2,
    "train.row_tokens": 2048,
    "train.eval_every": 1,
    "sample.n": 2,
    "sample.max_tokens": 16,
    "stitch.max_tokens": 16,
    "stitch.attempts": 1,
    "data.eval_cases": 2,
    "score.resamples": 100,
}
DEMO = {"synthetic.train": 24, "synthetic.val": 2, "synthetic.test": 2, "tokenizer.vocab_size": 400}
MCR = """
import sys
from mcr_jax.cli.main import main
argv = sys.argv[1:]
settings = {small}
if any(a.startswith("--config=demo") or a == "demo" for a in argv):
    settings |= {demo}
if any(a.startswith("--config=") for a in argv) and not any("--plan" in a for a in argv):
    argv += [f"--config.{{k}}={{v}}" for k, v in settings.items() if f".{{k}}=" not in str(argv)]
sys.exit(main(argv))
"""
STAND_INS = {
    "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    "pip": '#!/bin/sh\n[ "$1" = install ]\n',
    "make": f'#!/bin/sh\nexec /usr/bin/make -n -C {ROOT} "$@"\n',
    "hf": '#!/bin/sh\n[ "$1" = download ] && [ "$3" = --local-dir=DIR ] && [ -d DIR ]\n',
}


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of the fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text)


@pytest.fixture(scope="module")
def user(tmp_path_factory, clinic_cases, write_model):
    """A folder with what the commands name, and `bin` with the stand-ins."""
    folder = tmp_path_factory.mktemp("user")
    for split, members in clinic_cases.items():
        write_jsonl(members, folder / "path" / "to" / "MedCaseReasoning" / f"{split}.jsonl")
    sizes = {"layers": 1, "width": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "mlp_width": 48}
    write_model(folder / "DIR", qkv_bias=True, **sizes)  # a Qwen 2
    (folder / "path" / "to" / "folder").symlink_to(folder / "DIR")
    (folder / "bin").mkdir()
    code = MCR.format(small=SMALL, demo=DEMO)
    for name, source in {"mcr": f"#!{sys.executable}\n{code}", **STAND_INS}.items():
        (folder / "bin" / name).write_text(source)
        (folder / "bin" / name).chmod(0o755)
    line = {"case": clinic_cases["test"][0].pmcid, "reasoning": "It hums.", "answer": "Sable gout"}
    (folder / "COMPLETIONS.jsonl").write_text(json.dumps(line) + "\n")
    build(str(folder / "path" / "to" / "MedCaseReasoning"), folder / "tfds")
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs_as_it_is_written(page, user, hub, gemini, openai, mcr_env):
    script = ["set -ex"]
    for language, code in blocks(page):
        assert language in LANGUAGES, f"{page}: a block of {language or 'no language'}"
        if language == "sh":
            script.append(code)
        elif language == "python" and "--8<--" not in code:
            script.append(f"python - <<'END_OF_BLOCK'\n{code}\nEND_OF_BLOCK")
    env = {
        **{name: value for name, value in mcr_env.items() if not name.startswith("HF_")},
        "PATH": f"{user / 'bin'}:{os.environ['PATH']}",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(user / "hf"),
        "TFDS_DATA_DIR": str(user / "tfds"),
        "GOOGLE_GEMINI_BASE_URL": gemini.url,
        "GEMINI_API_KEY": gemini.key,
        "OPENAI_BASE_URL": openai.url,
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=user,
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def test_no_page_is_left_out_and_no_code_stands_outside_of_a_fence():
    pages = {"README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))}
    without_code = {page for page in pages if not blocks(page)}
    assert pages - without_code == set(PAGES)
    for page in pages:
        text = re.sub(r"(?ms)^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"))
        assert not re.search(r"(?m)^ {4,}(mcr|make|pip|python|import|from) ", text), page
