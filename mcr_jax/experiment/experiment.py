"""One config in one workdir: parts that the commands share, each loaded on first use."""

import contextlib
import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mcr_jax import prompts
from mcr_jax.cases import SPLITS, Case
from mcr_jax.errors import UsageError
from mcr_jax.experiment import parts, settled
from mcr_jax.paths import expanded, local_folder
from mcr_jax.workdir import Workdir, digest

if TYPE_CHECKING:
    from mcr_jax.model.shape import DecoderConfig
    from mcr_jax.text.tokenizer import Tokenizer

SYNTHETIC = "synthetic"  # config.data.source of the fictional clinic
IN_WORKDIR = "workdir"  # config.data.data_dir of a dataset that belongs to one experiment


class Experiment:
    """A resolved config and its workdir.

    Attributes:
      config: locked.
      workdir: holds all artifacts.
    """

    def __init__(self, config: ConfigDict, workdir: Workdir):
        """Raises UsageError if artifacts in the workdir were made with another config."""
        settled.check(config, workdir)
        self.config, self.workdir = config, workdir

    def of_folder(self, folder: str) -> "Experiment":
        """Returns an experiment with the same cases whose base model is a Hugging Face folder."""
        other = copy.copy(self)
        other.__dict__ = {"workdir": self.workdir, "cases": self.cases}
        other.config = self.config.copy_and_resolve_references()
        with other.config.unlocked():
            other.config.model.folder, other.config.model.shape = folder, "any"
            other.config.tokenizer.path, other.config.lora.rank = "", 0
        return other

    def working(self) -> contextlib.AbstractContextManager[None]:
        """Holds the workdir against other writers (`settled.working`)."""
        return settled.working(self.config, self.workdir)

    def refuse_other(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the manifest holds of training with these inputs (`settled`)."""
        return settled.refuse_other(self.config, self.workdir, inputs)

    @property
    def checkpoints(self) -> str | Path:
        """Folder or address of the checkpoints."""
        given = self.config.train.checkpoints
        if given and "://" not in given:
            return expanded(given)
        return given or self.workdir.checkpoints

    @property
    def data_dir(self) -> Path | str | None:
        """TFDS data_dir; None is TFDS's default."""
        given = self.config.data.data_dir
        return self.workdir.data if given == IN_WORKDIR else given or None

    @functools.cached_property
    def prompt(self) -> prompts.Prompt:
        """Prompt around a case's presentation, the same for training and sampling."""
        return prompts.load(self.config.prompt, self.config.prompts)

    @functools.cached_property
    def tokenizer(self) -> "Tokenizer":
        """Tokenizer: loaded, or trained on the train split and saved (`parts.tokenizer`)."""
        from mcr_jax.data.example import training_texts

        return parts.tokenizer(
            self.config, self.workdir, lambda: training_texts(self.cases("train"), self.prompt)
        )

    @functools.cached_property
    def shape(self) -> "DecoderConfig":
        """Shape of the decoder. Raises UsageError if config.model is impossible."""
        tokenizer = self.tokenizer
        shape = parts.decoder_shape(self.config, tokenizer.vocab_size)
        # A tokenizer may have more ids than the model, but these must have embeddings.
        if beyond := [i for i in tokenizer.eos_ids if i >= shape.vocab_size]:
            raise UsageError(
                f"the tokenizer ends an answer with id {beyond[0]}, and the model in "
                f"{self.config.model.folder} has {shape.vocab_size} ids"
            )
        return shape

    @functools.cache  # noqa: B019 - one experiment per process
    def cases(self, split: str) -> Sequence[Case]:
        """Returns the cases of a split, in the order of the dataset."""
        from mcr_jax.data.dataset import load_cases

        return load_cases(self.data_dir, split)

    def has_split(self, split: str) -> bool:
        """Returns whether the dataset holds cases of `split`."""
        from mcr_jax.data.dataset import open_builder

        return split in open_builder(self.data_dir).info.splits

    def training_cases(self) -> list[Case]:
        """Returns the cases that training reads: splits train and, if there is one, val."""
        splits = ("train", "val") if self.has_split("val") else ("train",)
        return [case for split in splits for case in self.cases(split)]

    @functools.cached_property
    def traces(self) -> dict[str, str] | None:
        """Traces to train on, by case fingerprint; None to train on the statements.

        Raises McrError if a case has no trace.
        """
        from mcr_jax.data import traces

        if self.config.train.traces == "enumerated":
            return None
        return traces.load(self.workdir.traces, self.training_cases())

    def eval_cases(self) -> Sequence[Case]:
        """Returns the cases to sample and judge, and records them in the manifest."""
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
        """Returns digests of the tokenizer and of config.model.folder.

        Every model here depends on both, and a folder of the same name may hold other files.
        """
        return {"tokenizer": self.tokenizer.fingerprint, "model.folder": self.folder_digest()}

    def folder_digest(self) -> str:
        """Returns the SHA-256 of the files in config.model.folder; "" without a folder."""
        if not self.config.model.folder:
            return ""
        from mcr_jax.model import hf

        return hf.digest(local_folder(self.config.model.folder))


def devices() -> dict[str, Any]:
    """Returns the devices of this process, for the manifest."""
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    return {"devices": f"{len(kinds)} x {kinds[0]}", "platform": jax.default_backend()}
