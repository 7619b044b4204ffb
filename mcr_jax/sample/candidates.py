"""Candidates of an evaluation: each kind of model of config.sample.models behind one interface."""

import abc
import datetime
import functools
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mcr_jax import model_specs
from mcr_jax.errors import McrError, UsageError
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.generate import notices, services
from mcr_jax.generate.api import Generator, Remote
from mcr_jax.generate.batch_wire import Batched
from mcr_jax.generate.budget import require_price
from mcr_jax.generate.ledger import Ledger, Scope
from mcr_jax.model.checkpoints import steps
from mcr_jax.model_specs import ModelSpec
from mcr_jax.paths import local_folder
from mcr_jax.sample import finished
from mcr_jax.sample.draw import STAGE, held, requests, too_long
from mcr_jax.workdir import digest

if TYPE_CHECKING:
    from mcr_jax.generate.slots import Plan


class Candidate(abc.ABC):
    """A model that answers cases.

    Attributes:
      spec: its name and kind.
      service: "KIND:MODEL" that is paid for its completions; "" for none.
    """

    service = ""

    def __init__(self, experiment: Experiment, spec: ModelSpec):
        self._e, self.spec = experiment, spec

    @abc.abstractmethod
    def ready(self) -> None:
        """Raises UsageError or McrError if it cannot answer; loads nothing."""

    @abc.abstractmethod
    def complete(self) -> int | None:
        """Returns its number of completions if none is open, without loading it; else None."""

    @abc.abstractmethod
    def load(self) -> tuple[Generator | Remote, dict[str, Any]]:
        """Returns the model and the facts of it for the manifest."""

    def lines(self) -> Iterable[str]:
        """Returns lines to print before its first completion."""
        return ()

    def notices(self, ledger: Ledger) -> Iterable[str]:
        """Returns lines to print after its last completion, on what its service reported."""
        return ()


class Decoder(Candidate):
    """A decoder on this machine's devices: base, sft, sft@STEP, or a Hugging Face folder.

    A folder is the base model of an experiment of its own in the same workdir.
    """

    def __init__(self, experiment: Experiment, spec: ModelSpec):
        super().__init__(experiment, spec)
        self._own = spec.kind if spec.own else model_specs.UNTRAINED
        if not spec.own:
            self._e = experiment.of_folder(spec.value)

    def ready(self) -> None:
        if not self.spec.own:
            self._require_folder()
        self._e.tokenizer.encode_prompt(requests(self._e)[0].messages)  # needs a chat template
        if self._own == model_specs.UNTRAINED and (folder := self._e.config.model.folder):
            from mcr_jax.model.hf.weight_files import Files

            Files(local_folder(folder), self._e.shape.tied)  # missing or broken weights
        if self._own != model_specs.TRAINED:
            return
        there, wanted = steps(self._e.checkpoints), self.spec.value
        if not there:
            raise McrError(
                f"{self._e.checkpoints}: no checkpoint here, and config.sample.models names "
                f"{self.spec.name}: run `mcr train` first, or leave it out with "
                "--config.sample.models=base"
            )
        if wanted and int(wanted) not in there:
            listed = ", ".join(map(str, sorted(there)))
            raise UsageError(f"{self._e.checkpoints}: no checkpoint of step {wanted}: {listed}")
        if not wanted and self._e.config.sample.checkpoint == "best":
            from mcr_jax.model.store import chosen_step

            chosen_step(self._e.checkpoints, "best")

    def _require_folder(self) -> None:
        """Reads config and tokenizer of the folder; an error names it as config.sample.models."""
        name, own = self.spec.name, f"{self.spec.kind}:{self.spec.value}"
        entry = name if name == own else f"{name}={own}"
        try:
            self._e.shape  # noqa: B018 - reads them
        except UsageError as error:
            field = f"config.model.folder={self.spec.value}"
            named = str(error).replace(field, f"{entry} in config.sample.models")
            raise UsageError(named) from None

    def complete(self) -> int | None:
        return finished.complete(self._e, self.spec)

    def load(self) -> tuple[Generator, dict[str, Any]]:
        from mcr_jax.generate import local

        e, plan = self._e, _plan(self._e)
        model, origin = local.load(
            *(self._own, plan, plan.mesh(), e.shape, e.workdir, e.config, e.tokenizer),
            which=self.spec.value if self.spec.own else "",
        )
        return model, {
            "identity": model.identity,
            "weights": origin,
            "rests": finished.rests(e, self.spec),
            "plan": plan.facts(),
            "config": digest(json.loads(e.config.to_json())),
        }

    def lines(self) -> Iterable[str]:
        return (*_plan(self._e).lines(), *_too_long(self._e))


@functools.cache  # one experiment per process: base and sft have one plan
def _plan(e: Experiment) -> "Plan":
    from mcr_jax.generate import local
    from mcr_jax.generate.engine.state import Shape

    c = e.config.sample
    wanted = Shape(
        slots=c.slots,
        share=min(c.share, c.n),
        prompt_tokens=c.prompt_tokens,
        max_tokens=c.max_tokens,
        kv_dtype=c.kv_dtype,
    )
    return local.prepare(e.shape, e.config, wanted, tensor=c.tensor)


@functools.cache  # every prompt is tokenized for it
def _too_long(e: Experiment) -> list[str]:
    return list(too_long(requests(e), e.tokenizer, e.config))


class Service(Candidate):
    """A model behind a network."""

    def __init__(self, experiment: Experiment, spec: ModelSpec):
        super().__init__(experiment, spec)
        self.service = f"{spec.kind}:{spec.value}"

    def notices(self, ledger: Ledger) -> list[str]:
        reported = ledger.reported(Scope(STAGE, self.spec.name))
        return notices.lines(self.spec.name, self.spec.value, reported, datetime.date.today())

    def ready(self) -> None:
        self._remote  # noqa: B018 - refuses a missing key or a wrong setting
        require_price(self._e.config, self.service)

    @functools.cached_property
    def _remote(self) -> Remote:
        c = self._e.config
        service = services.make(
            self.spec.kind,
            self.spec.value,
            model_specs.endpoints(c),
            timeout=c.sample.timeout,
            concurrency=c.sample.concurrency,
            thinking=c.sample.thinking,
            thoughts=c.sample.thoughts,
            patience=c.judge.patience,
        )
        return Batched(service, c.judge.patience) if c.sample.batch else service

    def complete(self) -> int | None:
        c = self._e.config.sample
        identity = services.identity(self.spec.kind, self.spec.value, c.thinking, c.thoughts)
        return held(self._e, self.spec.name, identity)

    def load(self) -> tuple[Remote, dict[str, Any]]:
        return self._remote, {"identity": self._remote.identity}


class Recorded(Candidate):
    """Completions in a file, made elsewhere."""

    @functools.cached_property
    def _file(self) -> Any:
        from mcr_jax.generate.recorded import RecordedCompletions

        return RecordedCompletions(local_folder(self.spec.value), self._e.eval_cases())

    def ready(self) -> None:
        self._file  # noqa: B018 - reads the whole file

    def complete(self) -> int | None:
        return held(self._e, self.spec.name, self._file.identity)

    def load(self) -> tuple[Generator, dict[str, Any]]:
        return self._file, {"identity": self._file.identity, "file": str(self.spec.value)}

    def lines(self) -> Iterable[str]:
        wanted = requests(self._e)
        (found, most), n = self._file.found(wanted), self._e.config.sample.n
        total = n * len(wanted)
        if found == total:
            return ()
        few = f", the file has {most}" + " at most" * (found < most * len(wanted))
        why = f" (config.sample.n={n} wants {n} per case{few})" if most < n else ""
        return (
            f"{self.spec.name}: {found} of {total} completions are in {self.spec.value}, "
            f"{total - found} missing{why}",
        )


def candidates(experiment: Experiment) -> list[Candidate]:
    """Returns the candidates of config.sample.models. Raises UsageError if one is unknown."""
    kinds = {model_specs.FILE: Recorded, model_specs.FOLDER: Decoder}
    return [
        (Decoder if spec.own else kinds.get(spec.kind, Service))(experiment, spec)
        for spec in model_specs.specs(experiment.config)
    ]
