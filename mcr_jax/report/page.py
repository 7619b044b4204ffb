"""The page: results.json, scores.json, metrics.jsonl and the ledger become report.html.

The page is one file that works offline: styles, script, charts and data are inline, and its
Content-Security-Policy admits nothing else. Completions are untrusted text: the template escapes
them, and the script sets text content only.
"""

import base64
import collections
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from ml_collections import ConfigDict

from mcr_jax import artifacts
from mcr_jax.cases import Case
from mcr_jax.completion import RULES
from mcr_jax.generate import spending
from mcr_jax.generate.joined import join
from mcr_jax.generate.ledger import opened
from mcr_jax.metrics import HEADLINE, METRICS, of_model
from mcr_jax.report import charts, payload
from mcr_jax.report.evidence import visible
from mcr_jax.workdir import Workdir

BENCHMARK = "MedCaseReasoning"
SCATTER = ("reasoning_recall", HEADLINE)  # metrics of the axes x and y
KINDS = {
    "right": "answered, right",
    "wrong": "answered, wrong",
    "unjudged": "answered, no verdict",
    "no_answer": "not exactly one answer",
    "TRUNCATED": "cut off before an answer",
    "prompt_too_long": "prompt too long",
    "BLOCKED": "blocked",
    "MALFORMED": "malformed",
    "INFRA_ERROR": "infrastructure error",
    "missing": "never attempted",
}


def report(workdir: Workdir, config: ConfigDict, cases: Sequence[Case]) -> Path:
    """Writes report.html.

    Args:
      workdir: holds results.json, scores.json, the ledger and, after training, metrics.jsonl.
      config: a resolved config; reads `data.source` and `judge`.
      cases: texts of the evaluated cases; others are left out.

    Returns:
      Path of the page.

    Raises:
      McrError: an artifact is missing or broken, or the page cannot be written.
    """
    results = artifacts.results(workdir)
    scores = artifacts.scores(workdir, list(results["models"]))
    with opened(workdir, readonly=True) as ledger:
        index, details = payload.browser(join(ledger, config), config, scores, cases)
    fictional = bool(results["data"].get("synthetic"))
    context = {
        "results": results,
        "title": _title(results),
        "benchmark": BENCHMARK,
        "fictional": fictional,
        "models": [visible(name) for name in results["models"]],
        "keys": [charts.key(series) for series in range(len(results["models"]))],
        "lede": _lede(results),
        "cost": spending.sentence(results),
        "rows": _rows(results),
        "axis": charts.axis(),
        "pairs": _pairs(results),
        "outcomes": _outcomes(results, scores),
        "answers": _answers(results),
        "mode": visible(results["config"].get("answer", "")),
        **_judge(results["judge"]),
        "judges": _judges(results),
        "repeatability": _repeatability(results),
        **_charts(results, scores, artifacts.metrics(workdir)),
        "index": payload.embed(
            {
                "models": [visible(name) for name in results["models"]],
                "kinds": KINDS,
                "rules": RULES,
                "cases": index,
            }
        ),
        "details": payload.embed(details),
        "percent": charts.percent,
        "points": charts.points,
    }
    workdir.write_text(workdir.report, render(context))
    return workdir.report


def render(
    context: Mapping[str, Any], template: str = "page.html", package: str = "mcr_jax.report"
) -> str:
    """Fills a template; style and script go inline, and the policy lists their hashes.

    Args:
      context: names of the template.
      template: file in the folder of `package`; the style is the report's.
      package: holds the template.
    """
    folders = [jinja2.PackageLoader(name, ".") for name in (package, "mcr_jax.report")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assets = {}
    for name in ("css", "js"):
        source, _, _ = environment.loader.get_source(environment, f"page.{name}")
        assets[name] = Markup(source)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assets[f"{name}_hash"] = f"'sha256-{digest}'"
    return environment.get_template(template).render(**context, **assets)


def _title(results: Mapping[str, Any]) -> str:
    """Returns the config's name; "" if it only repeats the benchmark's, which stands beside it."""
    name = results["config"]["name"] or "mcr-jax"
    return "" if name == BENCHMARK else visible(name)


def _lede(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the headline metric of one or two models, for the opening sentence; else None."""
    names = list(results["models"])
    if len(names) > 2:
        return None
    found = [of_model(results["models"][name])[HEADLINE] for name in (names[0], names[-1])]
    if any(metric["value"] is None for metric in found):
        return None
    compared = [
        c
        for c in results["comparisons"]
        if (c["a"], c["b"], c["metric"]) == (names[0], names[-1], HEADLINE)
        and c["difference"] is not None
    ]
    return {
        "first": (visible(names[0]), found[0]),
        "last": (visible(names[-1]), found[1]),
        "single": len(names) == 1,
        "compared": compared[0] if compared else None,
    }


def metric_rows(models: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Returns the rows of a table of models, one for each metric that any model has.

    Args:
      models: METRIC values by name, of each model.
    """
    return [
        {
            "name": metric.name,
            "label": metric.label,
            "meaning": metric.meaning,
            "cells": cells,
            "intervals": charts.intervals(cells),
        }
        for metric in METRICS
        if any(cells := [found.get(metric.name) for found in models])
    ]


def _rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the table of results, with the comparisons of each metric."""
    compared = {(c["a"], c["b"], c["metric"]): c for c in results["comparisons"]}
    pairs = _pair_names(results)
    return [
        {**row, "compared": [compared.get((*pair, row["name"])) for pair in pairs]}
        for row in metric_rows([of_model(model) for model in results["models"].values()])
    ]


def _pair_names(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((c["a"], c["b"]) for c in results["comparisons"]))


def _pairs(results: Mapping[str, Any]) -> list[str]:
    return [f"{visible(b)} − {visible(a)}" for a, b in _pair_names(results)]


def _outcomes(results: Mapping[str, Any], scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Counts the outcomes of completions, one row per kind; answers are split by verdict."""
    counts = []
    for name in results["models"]:
        count = collections.Counter()
        for case in scores["models"][name].values():
            for kind, right in zip(case["kinds"], case["right"], strict=True):
                judged = {True: "right", False: "wrong", None: "unjudged"}[right]
                count[judged if kind == "OK" else kind] += 1
        counts.append(count)
    rows = []
    for kind, label in KINDS.items():
        if any(count[kind] for count in counts):
            cells = []
            for series, count in enumerate(counts):
                share = count[kind] / max(1, count.total())
                cells.append((count[kind], share, charts.share_bar(share, series)))
            rows.append({"label": label, "cells": cells})
    return rows


def _judge(judge: Mapping[str, Any]) -> dict[str, str]:
    """Returns what the page says of the judge: name, identity, versions, note on its verdicts."""
    counts = collections.Counter()
    for of_stage in judge.get("versions", {}).values():
        counts.update(of_stage)
    versions = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
    words = {"judge": judge["name"], "versions": versions}
    words |= {name: judge.get(name, "") for name in ("identity", "note")}
    return {name: visible(text) for name, text in words.items()}


def _judges(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the table of judges, the headline first; [] for one judge."""
    others = results.get("judges", {})
    if not others:
        return []
    every = {results["judge"]["name"]: {"models": results["models"]}, **others}
    rows = []
    for name, judge in every.items():
        by_model = [of_model(judge["models"].get(model, {})) for model in results["models"]]
        rows.append(
            {
                "name": visible(name),
                "note": visible(judge.get("note", "")),
                "values": [[of.get(metric) for of in by_model] for metric in SCATTER[::-1]],
                "agreement": judge.get("agreement"),
            }
        )
    return rows


def _repeatability(results: Mapping[str, Any]) -> str:
    """Returns a sentence on the repeats of the headline judge; "" without repeats."""
    judge = results["judge"]
    shares = [
        f"{charts.percent(share['value'])} of {unit}"
        for stage, unit in (("diagnosis", "diagnoses"), ("reasons", "statements"))
        if (share := judge.get("repeatability", {}).get(stage)) and share["value"] is not None
    ]
    if not shares:
        return ""
    return f"All repeats of a verdict agree on {' and '.join(shares)} (mean over cases)."


def _answers(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Counts answers by the rule that read them, one row per rule."""
    counts = [model.get("answers", {}) for model in results["models"].values()]
    rows = []
    for rule in dict.fromkeys((*RULES, *(rule for count in counts for rule in count))):
        cells = []
        for series, count in enumerate(counts):
            share = count.get(rule, 0) / max(1, sum(count.values()))
            cells.append((count.get(rule, 0), share, charts.share_bar(share, series)))
        if any(number for number, *_ in cells):
            rows.append({"label": RULES.get(rule, visible(rule)), "cells": cells})
    return rows


def _charts(
    results: Mapping[str, Any], scores: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Draws the plots; a plot without content becomes a sentence in "absent"."""
    averages = {visible(name): of_model(model) for name, model in results["models"].items()}
    by_case = {
        visible(name): [case["metrics"] for case in scores["models"][name].values()]
        for name in results["models"]
    }
    drawn = []
    for chart in dict.fromkeys(metric.chart for metric in METRICS if metric.chart):
        names = [metric.name for metric in METRICS if metric.chart == chart]
        if plot := charts.of_metrics(chart, names, averages, by_case):
            drawn.append({"title": chart.title, "caption": chart.caption, "plot": plot})
    scatter, absent = [], []
    for series, (name, cases) in enumerate(by_case.items()):
        pairs = [tuple(case.get(metric) for metric in SCATTER) for case in cases]
        both = [pair for pair in pairs if None not in pair]
        if plot := charts.recall_accuracy(name, series, both):
            r = charts.correlation(both)
            scatter.append({"name": name, "plot": plot, "r": r, "cases": len(both)})
        elif both:
            absent.append(f"Recall against accuracy, {name}: {_alike(both)}.")
    last = [row for row in rows if math.isfinite(row.get("val_loss") or math.nan)]
    loss = charts.loss(rows)
    if loss is None:
        absent.append("Loss while training: this workdir holds no training log.")
    return {
        "metric_plots": drawn,
        "loss_plot": loss,
        "last_val": last[-1] if last else None,
        "scatter": scatter,
        "absent": absent,
    }


def _alike(points: Sequence[tuple[float, float]]) -> str:
    """Says which of recall and accuracy has the same value in every case."""
    recall, accuracy = ({round(v, 9) for v in values} for values in zip(*points, strict=True))
    constant = [
        f"{word} is {charts.percent(*values)}"
        for word, values in (("recall", recall), ("accuracy", accuracy))
        if len(values) == 1
    ]
    cases = "the only case" if len(points) == 1 else f"every one of the {len(points)} cases"
    return f"{' and '.join(constant)} in {cases}"
