"""TFDS builder of MedCaseReasoning.

In: JSONL or Parquet files, or a Hub snapshot folder. Out: a prepared dataset for `tfds.load` and,
without TensorFlow, `tfds.data_source`. Both find it by name after `import mcr_jax.tfds`, or with
`data_dir=DIR` and no import.

`mcr build` prepares it atomically. By hand:

    from mcr_jax.data_builders import medcasereasoning
    medcasereasoning.Builder(source="snapshot_folder").download_and_prepare()

The config `stitched` adds the traces of `mcr stitch` to the same cases.
"""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from mcr_jax import cases as cases_lib
from mcr_jax import errors
from mcr_jax.data import traces as traces_lib
from mcr_jax.data.statement_counts import statement_counts

STITCHED = tfds.core.BuilderConfig(
    name="stitched",
    description="With one fluent reasoning trace per case of the train and val splits.",
)
_ARRAY_RECORD = tfds.core.FileFormat.ARRAY_RECORD
_TRACED = ("train", "val")  # splits in which every case has a trace
_HOMEPAGE = "https://arxiv.org/abs/2505.11733"
_LICENSE = (
    "MIT by the card of zou-lab/MedCaseReasoning on the Hugging Face Hub, CC BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/) by the authors of the paper, arXiv:2505.11733. "
    "The cases derive from articles of the PubMed Central Open Access subset, each under a license "
    "of its own (`license`, where the source gives it); each is attributed by its pmcid."
)
_DOCS = {
    **cases_lib.DOCS,
    "statements": "diagnostic_reasoning without its numbering, one item per statement.",
    "fingerprint": "SHA-256 of the case: pmcid, case_prompt, diagnostic_reasoning, diagnosis.",
    "trace": "The statements as one fluent reasoning trace; empty in splits without traces.",
    "trace_source": "stitched, written by a model; joined, the statements one after the other.",
}


class _WholeShardWriter(tfds.core.ExampleWriter):
    """Writes each shard from a list.

    The Parquet adapter of TFDS 4.9.10 batches with `islice(examples, i, i + 100)`. TFDS passes an
    iterator, on which that silently skips examples: a shard of 3,273 keeps 700.
    """

    def write(self, path: Any, examples: Iterable[Any]) -> Any:
        return super().write(path, list(examples))


class Builder(tfds.core.GeneratorBasedBuilder):
    """Clinical cases with the clinician's numbered reasons and the final diagnosis.

    Examples are keyed by fingerprint, so the order of the source does not matter. `info.metadata`
    holds the fingerprint of the source, the number of cases per split, and statistics of statements
    per case.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "The cases as published, with parsed statements and fingerprints."
    }
    # Not in BUILDER_CONFIGS: the first of those would be the default, in another folder than the
    # dataset without a config.
    builder_configs: ClassVar[dict[str, tfds.core.BuilderConfig]] = {STITCHED.name: STITCHED}
    # TFDS would infer a path from the module's name, which is wrong in an editable install.
    pkg_dir_path = tfds.core.Path(__file__).parent

    def __init__(
        self,
        *,
        source: str | Sequence[cases_lib.Case] | None = None,
        traces: str | pathlib.Path | None = None,
        origin: str = "",
        progress: Callable[[int, int], None] | None = None,
        file_format: str | tfds.core.FileFormat | None = "parquet",
        **kwargs: Any,
    ):
        """Opens the builder; `download_and_prepare` prepares the dataset.

        Args:
          source: "PATH[,PATH]" or the cases; required to prepare, not to read.
          traces: file of `mcr stitch`; required to prepare the config `stitched`.
          origin: origin of the source for `info.metadata`; "" if unknown.
          progress: called with (cases written, total cases) during preparation.
          file_format: Parquet, which needs no TensorFlow. array_record, which `tfds.data_source`
            requires without data_dir, is replaced by it: both have random access.
          **kwargs: arguments of `tfds.core.GeneratorBasedBuilder`, such as `data_dir`.
        """
        if file_format and tfds.core.FileFormat.from_value(file_format) == _ARRAY_RECORD:
            file_format = tfds.core.FileFormat.PARQUET
        super().__init__(file_format=file_format, **kwargs)
        # Restored by pickle.
        self._original_state.update(source=source, traces=traces, origin=origin)
        self._source, self._traces, self._origin = source, traces, origin
        self._progress = progress or (lambda done, total: None)
        self._rows: dict[str, traces_lib.Trace] = {}
        self._done = self._total = 0

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Prepares the dataset, unless it exists.

        Raises:
          UsageError: it does not exist, and the source or the traces of `stitched` are missing.
        """
        no_traces = self.builder_config and self._traces is None
        if not self.data_path.exists() and (self._source is None or no_traces):
            name = "/".join(self.data_path.parent.relative_to(self._data_dir_root).parts)
            option = "--traces=WORKDIR/traces.parquet, " if self.builder_config else ""
            raise errors.UsageError(
                f"{name} is not prepared in {self._data_dir_root}: run `mcr build` ({option}"
                "--source=PATH for local cases), or pass another data_dir"
            )
        super().download_and_prepare(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: tfds.features.Text(doc=_DOCS[name]) for name in cases_lib.FIELDS}
        features["statements"] = tfds.features.Sequence(
            tfds.features.Text(), doc=_DOCS["statements"]
        )
        added = ("fingerprint", *(("trace", "trace_source") if self.builder_config else ()))
        features |= {name: tfds.features.Text(doc=_DOCS[name]) for name in added}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=None,
            homepage=_HOMEPAGE,
            license=_LICENSE,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # no download
        cases = self._source
        if isinstance(cases, str):
            cases = cases_lib.read_cases(cases)
        by_split = {split: [c for c in cases if c.split == split] for split in cases_lib.SPLITS}
        by_split = {split: members for split, members in by_split.items() if members}
        self._done, self._total = 0, sum(map(len, by_split.values()))
        if not cases or self._total < len(cases):
            raise errors.McrError(
                f"{len(cases) - self._total} of {len(cases)} cases are in a split; "
                f"give every case one of {', '.join(cases_lib.SPLITS)}"
            )
        self.info.metadata.update(
            source_fingerprint=cases_lib.source_fingerprint(cases),
            counts={split: len(members) for split, members in by_split.items()},
            **statement_counts(cases),
            **({"origin": self._origin} if self._origin else {}),
        )
        if self.builder_config:
            self._read_traces([case for split in _TRACED for case in by_split.get(split, ())])
        return {split: self._generate_examples(members) for split, members in by_split.items()}

    def _read_traces(self, cases: Sequence[cases_lib.Case]) -> None:
        path = pathlib.Path(self._traces)
        self._rows = {row.fingerprint: row for row in traces_lib.read(path)}
        traces_lib.require(path, self._rows, cases)
        self.info.metadata.update(traces_fingerprint=traces_lib.rows_digest(self._rows.values()))

    def _traced(self, case: cases_lib.Case) -> dict[str, str]:
        """Returns the fields that the config adds to an example."""
        if not self.builder_config:
            return {}
        row = self._rows[case.fingerprint] if case.split in _TRACED else None
        return {"trace": row.trace if row else "", "trace_source": row.source if row else ""}

    def _generate_examples(
        self, cases: Sequence[cases_lib.Case]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for case in cases:
            yield (
                case.fingerprint,
                {
                    **case.asdict(),
                    "statements": list(case.statements),
                    "fingerprint": case.fingerprint,
                    **self._traced(case),
                },
            )
            self._done += 1
            self._progress(self._done, self._total)

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _WholeShardWriter(self.info.file_format)

    def _log_download_bytes(self) -> None:
        """Prints nothing: there is no download."""

    def _log_download_done(self) -> None:
        """Prints nothing: `mcr build` prints the folder."""
