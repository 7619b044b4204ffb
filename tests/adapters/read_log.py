"""Reads a log with inspect_ai and lets it compute its metrics again: LOG OUT.json [REDUCER...]."""

import json
import pathlib
import sys

from inspect_ai.log import (
    read_eval_log,
    read_eval_log_sample,
    read_eval_log_sample_summaries,
    recompute_metrics,
)


def main(path: str, out: pathlib.Path, *reducers: str) -> None:
    log = read_eval_log(path)
    written = log.results.model_dump(mode="json")
    log.eval.config.epochs_reducer = list(reducers)
    recompute_metrics(log)
    first = log.samples[0]
    one = read_eval_log_sample(path, first.id, first.epoch)
    found = {
        "written": written["scores"],
        "again": log.results.model_dump(mode="json")["scores"],
        "header": read_eval_log(path, header_only=True).eval.model_dump(mode="json"),
        "summaries": [[s.id, s.epoch] for s in read_eval_log_sample_summaries(path)],
        "samples": [
            {
                "id": sample.id,
                "epoch": sample.epoch,
                "text": sample.output.completion,
                "stop": sample.output.stop_reason,
                "error": sample.error and sample.error.message,
                "input": sample.messages[0].text,
                "scores": {n: s.model_dump(mode="json") for n, s in sample.scores.items()},
            }
            for sample in log.samples
        ],
        "one": one.output.completion == first.output.completion,
    }
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]), *sys.argv[3:])
