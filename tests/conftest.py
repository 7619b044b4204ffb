"""Fixtures for all tests: a clean environment without keys and proxies, and a local Gemini."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import hypothesis
import pytest

# For this process, set before anything imports jax: eight virtual devices, and programs compiled
# fast rather than to be fast.
_XLA_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *_XLA_FLAGS)).strip()
# What one process of the run has compiled, workers and child processes included, no other need.
_COMPILED = {
    "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
os.environ.update({name: value for name, value in _COMPILED.items() if name not in os.environ})


hypothesis.settings.register_profile("mcr", deadline=None)  # no test is a stopwatch
hypothesis.settings.load_profile("mcr")


@pytest.fixture(autouse=True, scope="session")
def _clean_environment():
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.upper().startswith(("GOOGLE_", "GEMINI_", "OPENAI_")) or name.lower().endswith(
                "_proxy"
            ):
                patch.delenv(name)
        yield


def _module(name: str):
    """A module of tests/, wherever the test is that wants it."""
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gemini(monkeypatch):
    """A `GeminiServer` that the environment points to, with a key set."""
    with _module("gemini_server").GeminiServer() as server:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        monkeypatch.setenv("GEMINI_API_KEY", server.key)
        yield server


@pytest.fixture
def openai(monkeypatch):
    """An `OpenAIServer` that the environment points to, with a key set."""
    sys.modules.setdefault("gemini_server", _module("gemini_server"))
    with _module("openai_server").OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        yield server


@pytest.fixture(scope="session")
def hub_server():
    """The class `HubServer`."""
    return _module("hub_server").HubServer


@pytest.fixture
def hub(hub_server, clinic_cases, tmp_path):
    """A local Hub whose published dataset is `clinic_cases`."""
    import pyarrow as pa
    from pyarrow import parquet

    from mcr_jax.data.hub import REPOSITORY

    files, table = {}, tmp_path / "table.parquet"
    for split, cases in clinic_cases.items():
        parquet.write_table(pa.Table.from_pylist([case.asdict() for case in cases]), table)
        files[f"data/{split}-00000-of-00001.parquet"] = table.read_bytes()
    table.unlink()
    with hub_server(REPOSITORY, files) as server:
        yield server


@pytest.fixture
def clock_of(monkeypatch):
    """Gives a module a clock that is moved by hand, and returns it."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    def put(module):
        made = Clock()
        monkeypatch.setattr(module, "time", made)
        return made

    return put


@pytest.fixture
def one_device_env():
    """The environment for a subprocess that is to run as a user's does."""
    kept = [flag for flag in os.environ["XLA_FLAGS"].split() if flag not in _XLA_FLAGS]
    return {**os.environ, "XLA_FLAGS": " ".join(kept)}


@pytest.fixture(scope="session")
def clinic_cases():
    """A few fictional cases by split."""
    from mcr_jax import synthetic

    made = synthetic.cases(3, {"train": 40, "val": 4, "test": 4})
    return {split: [c for c in made if c.split == split] for split in ("train", "val", "test")}


@pytest.fixture(scope="session")
def clinic_prompt():
    from mcr_jax import prompts

    return prompts.load("diagnose_brief")


@pytest.fixture(scope="session")
def clinic_tokenizer(clinic_cases, clinic_prompt):
    """A small tokenizer trained on `clinic_cases`."""
    from mcr_jax.data.example import training_texts
    from mcr_jax.text.tokenizer import Tokenizer

    return Tokenizer.train(training_texts(clinic_cases["train"], clinic_prompt), 500)


@pytest.fixture(scope="session")
def write_model(clinic_tokenizer):
    """Writes a Hugging Face folder of a tiny random decoder with `clinic_tokenizer`."""
    from mcr_jax.model import hf, store
    from mcr_jax.model.shape import DecoderConfig

    def write(folder: pathlib.Path, **shape: object) -> pathlib.Path:
        config = DecoderConfig(vocab_size=clinic_tokenizer.vocab_size, tied=False, **shape)
        hf.save(store.untrained(config, 0), folder, tokenizer=clinic_tokenizer)
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, write_model):
    """A Hugging Face folder of a tiny random Qwen 3, with a tokenizer.json; for reading only."""
    sizes = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_width": 32}
    folder = tmp_path_factory.mktemp("hub") / "tiny-qwen3"
    return write_model(folder, qk_norm=True, dtype="bfloat16", **sizes)


@pytest.fixture(scope="session")
def clinic_data(tmp_path_factory, clinic_cases):
    """A data_dir in which `clinic_cases` are prepared; for reading only."""
    from mcr_jax.data_builders.medcasereasoning import Builder

    folder = tmp_path_factory.mktemp("clinic_data")
    source = [case for cases in clinic_cases.values() for case in cases]
    Builder(source=source, data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture
def mount_disk(tmp_path):
    """Mounts a file system of the size given, such as "1m", and returns its folder."""
    disk = tmp_path / "disk"

    def mount(size: str):
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", str(disk)], check=True, timeout=30)


@pytest.fixture
def small_disk(mount_disk):
    """A mounted file system of 256 KiB."""
    return mount_disk("256k")


@pytest.fixture(scope="session")
def tiny_shape():
    """A decoder that compiles in a moment and that meshes of eight devices divide."""
    from mcr_jax.model.shape import DecoderConfig

    sizes = {"vocab_size": 48, "layers": 2, "width": 16, "heads": 4, "kv_heads": 2}
    return DecoderConfig(**sizes, head_dim=8, mlp_width=32, embedding_scale=4.0)


CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def browser():
    """Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not pathlib.Path(CHROMIUM).exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    arguments += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def contrasts():
    """Returns the function from a page to (contrast, text) of its visible texts."""
    return lambda tab: tab.evaluate(_CONTRAST)


# WCAG contrast of every visible piece of text outside drawings with the ground it stands on.
_CONTRAST = """() => {
  const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const ratios = [];
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    const quiet = e.closest("svg, script, style, noscript, .skip, :disabled");
    if (quiet || !texts.currentNode.data.trim() || !e.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))];
    ratios.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), texts.currentNode.data.trim()]);
  }
  return ratios;
}"""
