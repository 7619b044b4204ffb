"""One config in one workdir: what the commands share, each part loaded when first asked for."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mcr_jax import artifacts, console, prompts
from mcr_jax import config as configs
from mcr_jax.cases import SPLITS, Case
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.experiment import made as _made
from mcr_jax.model.checkpoints import newest_step
from mcr_jax.model.model_names import NAMES
from mcr_jax.paths import expanded, local_folder
from mcr_jax.workdir import Workdir, digest

if TYPE_CHECKING:
    from mcr_jax.model.shape import DecoderConfig
    from mcr_jax.text.tokenizer import Tokenizer

SYNTHETIC = "synthetic"  # config.data.source of the fictional clinic
IN_WORKDIR = "workdir"  # config.data.data_dir of a dataset that belongs to one experiment


class Experiment:
    """A resolved config and the workdir it is worked out in.

    Attributes:
      config: locked.
      workdir: where everything goes.
    """

    def __init__(self, config: ConfigDict, workdir: Workdir):
        """Raises UsageError if something in the workdir rests on another config."""
        self.config, self.workdir = config, workdir
        self._check()

    def _check(self) -> None:
        if not self.workdir.config.exists():
            return
        recorded = configs.load(self.workdir.config)
        before, settled = configs.frozen(recorded), None
        for field, value in configs.frozen(self.config).items():
            if before[field] == value:
                continue
            if settled is None:
                settled = self._settled(recorded.train.checkpoints)
            if field.startswith(settled):
                raise UsageError(
                    f"{self.workdir.path} was made with {field}={before[field]!r}, this call "
                    f"says {value!r}: use another --workdir"
                )

    def _settled(self, checkpoints: str) -> tuple[str, ...]:
        """What the frozen fields start with that something in the workdir rests on.

        A first call that failed has left nothing but its config, and a better one replaces it.
        """
        if self._has_results(checkpoints):
            return configs.FROZEN
        cases = ("seed", "data.", "synthetic.")
        if _made.answers(self.workdir):  # of stitching: traces are of a model not yet trained
            return (*cases, "prompt", "tokenizer.", "model.")
        if self.workdir.tokenizer.exists():
            return (*cases, "prompt", "tokenizer.")
        return cases if self.workdir.data.exists() or self.workdir.cases.exists() else ()

    def _has_results(self, checkpoints: str) -> bool:
        there = newest_step(checkpoints or self.workdir.checkpoints) is not None
        return there or self._was_sampled()

    def _was_sampled(self) -> bool:
        from mcr_jax.generate.ledger import Ledger, Scope

        if not self.workdir.ledger.exists():
            return False
        with Ledger(self.workdir.ledger, readonly=True) as ledger:
            return any(ledger.answers(Scope("sample", model)) for model in NAMES)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Holds the workdir against other writers, with this config recorded in it.

        A call that fails before it has made anything leaves the config and the manifest that were
        there before, or what was wrong with it would be wrong with every later call.
        """
        with self.workdir.locked():
            self._check()  # another mcr may have been first
            path, plain = self.workdir.config, json.loads(self.config.to_json())
            recorded = self.workdir.read_json(path) if path.exists() else None
            noted = _made.text(self.workdir.manifest)
            if recorded != plain:
                self.workdir.write_json(path, plain)
            made = _made.work(self.workdir)
            try:
                yield
            except Stopped:  # called again it goes on
                raise
            except McrError:
                if recorded != plain and _made.work(self.workdir) == made:
                    _made.put_back(self.workdir, recorded, noted)
                raise

    @property
    def checkpoints(self) -> str | Path:
        """The folder or the address of the checkpoints."""
        given = self.config.train.checkpoints
        if given and "://" not in given:
            return expanded(given)
        return given or self.workdir.checkpoints

    @property
    def data_dir(self) -> Path | str | None:
        """The TFDS data_dir; None is TFDS's default."""
        given = self.config.data.data_dir
        return self.workdir.data if given == IN_WORKDIR else given or None

    @functools.cached_property
    def prompt(self) -> prompts.Prompt:
        """The question a case is put in, the same for training and sampling."""
        return prompts.load(self.config.prompt, self.config.prompts)

    @functools.cached_property
    def model_folder(self) -> str:
        """config.model.folder; "" for a model from nothing.

        Raises:
          UsageError: it is no folder here, or not of the family of config.model.shape.
        """
        folder, name = self.config.model.folder, self.config.model.shape
        if not folder:
            if name:  # or a toy would stand for that model
                raise UsageError(
                    "this config needs the weights of a model: name their folder with "
                    "--config.model.folder=DIR"
                )
            return ""
        place = local_folder(folder)
        if not place.is_dir():
            raise UsageError(
                f"config.model.folder={folder}: no such folder; download it first, e.g. "
                f"`hf download Qwen/Qwen2.5-7B-Instruct --local-dir={folder}`"
            )
        if not (place / "config.json").is_file():
            raise UsageError(
                f"config.model.folder={folder} holds no config.json: name the folder of a model in "
                "Hugging Face's format"
            )
        self._refuse_other_family(place)
        return str(place)

    def _refuse_other_family(self, folder: Path) -> None:
        from mcr_jax.model.hf import config_json, published

        name = self.config.model.shape
        if name in ("", published.ANY):
            return
        wanted = published.family(published.shape(name))
        found = published.family(config_json.read(folder, self.config.model.ignore))
        if found != wanted:
            raise UsageError(
                f"config.model.folder={folder} holds a model of type {found}, and this config is "
                f"for {wanted}: choose another with --config (`mcr configs` lists them), or add "
                "--config.model.shape=any"
            )

    @functools.cached_property
    def tokenizer(self) -> "Tokenizer":
        """That of config.tokenizer.path or config.model.folder, or one trained and kept."""
        from mcr_jax.data.example import training_texts
        from mcr_jax.text.tokenizer import FILE, Tokenizer

        folder = self.model_folder
        if given := self.config.tokenizer.path or folder:
            given = local_folder(given)
            today = datetime.datetime.fromisoformat(self.config.tokenizer.date)
            return Tokenizer.load(given, now=today)
        if not (self.workdir.tokenizer / FILE).exists():
            texts = training_texts(self.cases("train"), self.prompt)
            made = Tokenizer.train(texts, self.config.tokenizer.vocab_size)
            if not self.workdir.writes:  # the process that does learns the same
                return made
            made.save(self.workdir.tokenizer)
            console.say(f"tokenizer: {made.vocab_size} pieces learned from the train split")
        return Tokenizer.load(self.workdir.tokenizer)

    @functools.cached_property
    def shape(self) -> "DecoderConfig":
        """The decoder's shape. Raises UsageError if config.model cannot be."""
        from mcr_jax.model.hf import config_json
        from mcr_jax.model.shape import DecoderConfig, LoraConfig, Rope

        tokenizer, sizes = self.tokenizer, self.config.model.to_dict()
        dtype, ignore = sizes.pop("dtype"), sizes.pop("ignore")
        folder = self.model_folder
        del sizes["folder"], sizes["shape"]
        # What no folder decides.
        ours = {"attention": self.config.attention, "remat": self.config.train.remat}
        ours["dtype"] = dtype
        try:
            lora = self.config.lora.to_dict()
            ours["lora"] = LoraConfig(**lora) if lora["rank"] else None
            if folder:
                shape = dataclasses.replace(config_json.read(folder, ignore), **ours)
                self._refuse_beyond(shape)
                return shape
            rope = Rope(theta=sizes.pop("rope_theta"))
            scale = sizes["width"] ** 0.5  # a table drawn at width^-0.5 gives vectors of unit size
            return DecoderConfig(
                vocab_size=tokenizer.vocab_size, rope=rope, embedding_scale=scale, **ours, **sizes
            )
        except ValueError as error:
            raise UsageError(f"config: {error}") from error

    def _refuse_beyond(self, shape: "DecoderConfig") -> None:
        """Tokenizers may know more ids than the model, for what is no text, but not all may be."""
        if beyond := [i for i in self.tokenizer.eos_ids if i >= shape.vocab_size]:
            raise UsageError(
                f"the tokenizer ends an answer with id {beyond[0]}, and the model in "
                f"{self.config.model.folder} has {shape.vocab_size} ids"
            )

    @functools.cache  # noqa: B019 - one experiment per process
    def cases(self, split: str) -> Sequence[Case]:
        """The cases of a split, in the order of the dataset."""
        from mcr_jax.data.dataset import load_cases

        return load_cases(self.data_dir, split)

    def has_split(self, split: str) -> bool:
        """Whether the dataset holds cases of `split`."""
        from mcr_jax.data.dataset import open_builder

        return split in open_builder(self.data_dir).info.splits

    def training_cases(self) -> list[Case]:
        """The cases that training reads: of the splits train and, where there is one, val."""
        splits = ("train", "val") if self.has_split("val") else ("train",)
        return [case for split in splits for case in self.cases(split)]

    @functools.cached_property
    def traces(self) -> dict[str, str] | None:
        """What training learns in place of the statements, by case; None for the statements.

        Raises McrError if a case has no trace.
        """
        from mcr_jax.data import traces

        if self.config.train.traces == "enumerated":
            return None
        return traces.load(self.workdir.traces, self.training_cases())

    def eval_cases(self) -> Sequence[Case]:
        """The cases that are sampled and judged; notes in the manifest which they are."""
        from mcr_jax.data.dataset import NAME, open_builder

        split, limit = self.config.data.eval_split, self.config.data.eval_cases
        if split not in SPLITS:
            raise UsageError(f"config.data.eval_split={split!r} is none of {', '.join(SPLITS)}")
        cases = self.cases(split)[: limit or None]
        info = open_builder(self.data_dir).info
        facts = {
            "dataset": NAME,
            "version": str(info.version),
            "fingerprint": info.metadata["source_fingerprint"],
            "split": split,
            "cases": len(cases),
            "eval_fingerprint": digest([case.fingerprint for case in cases]),
            "synthetic": self.config.data.source == SYNTHETIC,
        }
        if "origin" in info.metadata:
            facts["origin"] = info.metadata["origin"]
        self.workdir.note("data", facts)
        return cases

    def origin(self) -> dict[str, str]:
        """What every model here rests on: the tokenizer, and the folder that training starts from.

        A folder may be written over; the name that its config has in the workdir stays the same.
        """
        return {"tokenizer": self.tokenizer.fingerprint, "model.folder": self._folder_digest()}

    def refuse_other(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the manifest knows of training.

        Raises:
          UsageError: training was with other `inputs`, and has saved a step or was sampled from.
        """
        before = artifacts.section(self.workdir, "train")
        for name, value in inputs.items():
            if name in before and before[name] != value:
                if not self._has_results(self.config.train.checkpoints):
                    return {}
                other = "other" if name == "traces" else "another"
                raise UsageError(
                    f"{self.workdir.path} was trained with {other} {name} "
                    f"({str(before[name])[:12]}, now {str(value)[:12]}): put it back or use "
                    "another --workdir"
                )
        return before

    def _has_folder(self) -> bool:
        folder = self.config.model.folder
        return bool(folder) and local_folder(folder).is_dir()

    def _folder_digest(self) -> str:
        if not self.config.model.folder:
            return ""
        from mcr_jax.model import hf

        return hf.digest(local_folder(self.config.model.folder))

    def finished(self, what: str) -> bool:
        """Whether `finish(what)` was called and nothing it rests on has changed since."""
        sealed = artifacts.section(self.workdir, what)
        return bool(sealed) and sealed == self._seal()

    def finish(self, what: str) -> None:
        """Remembers that all of `what` is done."""
        self.workdir.note(what, self._seal())

    def _seal(self) -> dict[str, Any]:
        from mcr_jax.data.dataset import MissingDatasetError, dataset_fingerprint
        from mcr_jax.generate.ledger import Ledger

        outputs, rows, dataset = (self.workdir.results, self.workdir.report), 0, None
        with contextlib.suppress(MissingDatasetError):
            dataset = dataset_fingerprint(self.data_dir)
        if self.workdir.ledger.exists():
            with Ledger(self.workdir.ledger, readonly=True) as ledger:
                rows = ledger.count()
        return {
            "config": digest(json.loads(self.config.to_json())),
            "prompts": {name: self._prompt_digest(name) for name in prompts.names()},
            "dataset": dataset,
            "model.folder": self._folder_digest() if self._has_folder() else "",
            "step": newest_step(self.checkpoints),
            "ledger_rows": rows,
            **{path.name: _file_digest(path) for path in outputs},
        }

    def _prompt_digest(self, name: str) -> str:
        return prompts.load(name, self.config.prompts).digest


def devices() -> dict[str, Any]:
    """What this process computes on, for the manifest."""
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    return {"devices": f"{len(kinds)} x {kinds[0]}", "platform": jax.default_backend()}


def _file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
