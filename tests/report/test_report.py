"""The report, from a real ledger to a real browser."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from mcr_jax import artifacts, completion, config
from mcr_jax.cases import Case
from mcr_jax.errors import McrError
from mcr_jax.generate.api import Outcome
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.metrics import METRICS, Chart, Metric, case_mean
from mcr_jax.report import page, payload
from mcr_jax.score import results as scoring
from mcr_jax.score.table import table
from mcr_jax.score.verify import verify
from mcr_jax.workdir import Workdir

JUDGE = "offline"
SCRIPT = "<script>alert('from a completion')</script>"
CLOSING = "</script><img src=x onerror=\"alert('closing')\">"
BIDI = "left \u202eright to left\u202c and \u2066isolated\u2069"
HOSTILE_NAME = f"Sable gout {CLOSING} & “quoted” 'name' {{{{ 7 * 7 }}}}"


def _case(number, diagnosis, prompt="A lamplighter came with humming knees."):
    return Case(
        pmcid=f"FICTION-{number}",
        journal="Annals of the Fictional Clinic",
        article_link="javascript:alert(1)" if number == 1 else "https://example.org/fiction",
        case_prompt=prompt,
        diagnostic_reasoning="1. The “humming knees” suggest it.\n2. No frost on the tongue.",
        final_diagnosis=diagnosis,
        split="test",
    )


CASES = [
    _case(0, "Harrow fever"),
    _case(1, HOSTILE_NAME, f"{SCRIPT} {CLOSING} {BIDI} \u2028 ]]> <!-- 😀"),
    _case(2, "Quellan itch"),
]
TRACE = f"He has 'HUMMING  knees'. {SCRIPT} {CLOSING} {BIDI}\n\nThere is no frost."

# Per model and case: text of each completion, whether its answer is right, statements found.
PLAN = {
    "base": {
        0: (["<think>hm</think>", completion.render("hm", "Wrong gout")], [None, False], [0, 0]),
        1: ([SCRIPT, completion.render("hm", CLOSING)], [None, False], [0, 0]),
        2: ([completion.render("hm", "Quellan itch"), None], [True, None], [0, 0]),
    },
    "sft": {
        0: ([completion.render(TRACE, "Harrow fever")] * 2, [True, True], [1, 1]),
        1: ([completion.render(TRACE, CLOSING)] * 2, [False, True], [1, 0]),
        2: ([completion.render(TRACE, "Quellan itch")] * 2, [True, True], [1, 0]),
    },
}


def _config():
    c = config.default()
    c.name = f"run {SCRIPT}"
    c.data.source = "synthetic"
    c.sample.n = 2
    c.score.resamples = 200
    return config.check(c, "test")


def _write(ledger):
    for model, plan in PLAN.items():
        rows = []
        for number, (texts, rights, found) in plan.items():
            place = {"case": CASES[number].fingerprint, "model": model}
            for sample, (text, right) in enumerate(zip(texts, rights, strict=True)):
                row = RowKey(stage="sample", sample=sample, **place)
                failed = {"outcome": Outcome.INFRA_ERROR, "error": f"503 {SCRIPT}"}
                rows.append((row, failed if text is None else {"text": text}))
                if right is not None:
                    row = RowKey(stage="diagnosis", sample=sample, judge=JUDGE, **place)
                    rows.append((row, {"verdict": {"same": right}}))
            second = ["not in there", "knees"]  # the last is too short to be evidence
            quotes = [["“humming knees”"] if found[0] else [], second if found[1] else []]
            verified = [bool(found[0]), False]
            verdict = {"found": [bool(f) for f in found], "verified": verified, "quotes": quotes}
            row = RowKey(stage="reasons", sample=0, judge=JUDGE, **place)
            rows.append((row, {"verdict": verdict}))
        for stage in ("sample", "diagnosis", "reasons"):
            scope = Scope(stage, model, "" if stage == "sample" else JUDGE)
            ledger.declare(scope, {row: "d" for row, _ in rows if row.stage == stage})
        for row, fields in rows:
            fields = {"outcome": Outcome.OK, **fields}
            ledger.write(Attempt(row=row, digest="d", attempt=1, **fields))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = Workdir(tmp_path_factory.mktemp("report"))
    with Ledger(workdir.ledger) as ledger:
        _write(ledger)
    workdir.note("data", {"dataset": "fictional", "synthetic": True, "cases": 3})
    lines = [{"step": s, "loss": 3 - s / 100, "tokens": 9} for s in range(10, 110, 10)]
    lines += [{"step": 50, "val_loss": 2.6}, {"step": 100, "val_loss": 2.2}]
    workdir.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    scoring.score(workdir, _config())
    page.report(workdir, _config(), CASES)
    return workdir


@pytest.fixture(scope="module")
def html(workdir):
    return workdir.report.read_text(encoding="utf-8")


def test_the_page_is_the_same_for_the_same_work(workdir, html):
    page.report(workdir, _config(), CASES)
    assert workdir.report.read_text(encoding="utf-8") == html


def test_no_hostile_text_reaches_the_html_as_markup(html):
    assert html.count("<script") == html.count("</script") == 3
    assert "<img" not in html
    assert "{{" not in re.sub(r'<script type="application/json".*?</script>', "", html)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028]", html)


def test_the_page_loads_nothing_and_styles_nothing_from_elsewhere(html):
    assert not re.search(r'(?:src|href)="(?!#|data:,")', html)
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html and "unsafe" not in html


def test_the_headline_numbers_are_on_the_page_without_a_script(html):
    text = " ".join(re.sub(r"<[^>]*>", " ", html).replace("\xa0", " ").split())
    for part in ("33.3 %", "83.3 %", "+50.0", "3 of 3 cases", "Pearson r", "not for patient care"):
        assert part in text
    assert "fictional" in text


def test_each_model_has_its_own_cases_in_whatever_order_the_config_names_them(workdir, tmp_path):
    again, reversed_ = Workdir(tmp_path), _config()
    with reversed_.unlocked():
        reversed_.sample.models = ("sft", "base")
    again.ledger.write_bytes(workdir.ledger.read_bytes())
    scoring.score(again, reversed_)
    html = page.report(again, reversed_, CASES).read_text(encoding="utf-8")
    index = json.loads(re.search(r'id="index">(.*?)</script>', html)[1])
    assert index["models"] == ["sft", "base"]
    for series, model in enumerate(index["models"]):
        told = np.sum([case["tally"][series] for case in index["cases"]], axis=0).tolist()
        cases = artifacts.scores(again, [model])["models"][model].values()
        rights = [right for case in cases for right in case["right"]]
        assert told == [rights.count(value) for value in (True, False, None)]
        assert told[0] == {"sft": 5, "base": 1}[model]


def test_a_real_dataset_is_not_called_fictional(workdir, tmp_path):
    c = config.default()
    c.sample.n = 2
    results = workdir.read_json(workdir.results)
    results["data"] = {"dataset": "medcasereasoning"}
    other = Workdir(tmp_path)
    for path in ("ledger", "scores"):
        getattr(other, path).write_bytes(getattr(workdir, path).read_bytes())
    other.write_json(other.results, results)
    text = page.report(other, c, CASES).read_text(encoding="utf-8")
    assert "The cases are fictional" not in text
    assert "no training log" in text


def test_a_report_of_one_model_speaks_of_no_pair(workdir, tmp_path):
    results, scores = (workdir.read_json(getattr(workdir, n)) for n in ("results", "scores"))
    results["models"].pop("base")
    scores["models"].pop("base")
    alone = Workdir(tmp_path)
    alone.ledger.write_bytes(workdir.ledger.read_bytes())
    alone.write_json(alone.results, results | {"comparisons": []})
    alone.write_json(alone.scores, scores)
    text = page.report(alone, _config(), CASES).read_text(encoding="utf-8")
    seen = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)
    seen = re.sub(r"<[^>]*>", " ", seen).replace("one pair of", "")
    assert not re.search("pair|differen|p-value|base", seen, re.IGNORECASE)


def test_missing_artifacts_and_broken_logs_are_errors_that_name_them(workdir, tmp_path):
    with pytest.raises(McrError, match=r"results\.json: not there"):
        page.report(Workdir(tmp_path), _config(), CASES)
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 2}\nnonsense\n')
    with pytest.raises(McrError, match=r"metrics\.jsonl, row 2: not JSON"):
        artifacts.metrics(Workdir(tmp_path))


def test_embedded_json_reads_back_and_cannot_end_its_element():
    value = {"a": ["</script>", "<!--", "&amp;", "\u2028\u2029", "😀", '"\\']}
    text = str(payload.embed(value))
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


@pytest.fixture
def opened(browser, workdir):
    """The page in a browser; nothing untoward may have happened by the end of a test."""
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    untoward = []
    tab.on("dialog", lambda dialog: (untoward.append(f"dialog {dialog.message}"), dialog.dismiss()))
    tab.on("console", lambda message: untoward.append(f"console {message.text}"))
    tab.on("pageerror", lambda error: untoward.append(f"error {error}"))
    tab.on("request", lambda request: untoward.append(f"request {request.url}"))
    address = workdir.report.as_uri()
    tab.goto(address)
    tab.wait_for_selector("#case h3")
    yield tab
    tab.close()
    assert untoward == [f"request {address}"]


@pytest.fixture
def answered():
    """A metric that the package does not have: share of samples with exactly one answer."""
    share = {"OK": 1.0, "no_answer": 0.0}
    metric = Metric(
        name="answered",
        label="Share answered",
        short="has an answer",
        meaning="samples with exactly one answer",
        estimate=lambda case: case_mean([share.get(kind) for kind in case.kinds]),
        chart=Chart("histogram", "Who answers at all", "Cases by share.", "share answered"),
    )
    METRICS.append(metric)
    yield metric
    METRICS.remove(metric)


def test_one_entry_reaches_results_comparisons_table_page_and_verify(
    workdir, answered, tmp_path, browser
):
    again = Workdir(tmp_path)
    again.ledger.write_bytes(workdir.ledger.read_bytes())
    results = scoring.score(again, _config())
    base, sft = (results["models"][model]["answered"] for model in ("base", "sft"))
    assert base["value"] == pytest.approx(2 / 3) and sft["value"] == 1.0
    assert (base["worst"], base["best"]) == (0.5, pytest.approx(2 / 3))  # one sample failed
    (paired,) = [c for c in results["comparisons"] if c["metric"] == "answered"]
    assert paired["difference"] == pytest.approx(1 / 3)
    terminal = Console(width=120, file=io.StringIO())
    terminal.print(table(results))
    assert re.search(r"has an answer\s+0\.667\s+1\.000\s+\+0\.333", terminal.file.getvalue())
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    tab.goto(page.report(again, _config(), CASES).as_uri())
    row = tab.locator(".results tbody tr", has_text="Share answered").inner_text()
    assert all(part in row for part in ("66.7\xa0%", "100.0\xa0%", "+33.3 points"))
    figure = tab.locator("figure", has_text="Who answers at all")
    assert figure.locator("svg.plot rect").count() > 1 and figure.is_visible()
    tab.close()
    assert not [line for line in verify(again, _config(), CASES).differences if "json" in line]
    results["models"]["sft"]["answered"]["value"] = 0.9
    again.write_json(again.results, results)
    assert any(
        "models.sft.answered" in line for line in verify(again, _config(), CASES).differences
    )


def _at(tab, where):
    tab.locator(".where", has_text=where).wait_for(timeout=5000)


def test_the_reader_sees_table_and_charts(opened):
    assert opened.locator(".results tbody tr").count() == 3
    assert "33.3\xa0%" in opened.locator(".results").inner_text()
    assert opened.locator("svg.plot").count() == 3
    assert "base: recall is 0.0\xa0% and accuracy" not in opened.locator("main").inner_text()
    assert "base: recall is 0.0\xa0% in every one" in opened.locator("main").inner_text()
    assert opened.locator("svg.plot >> text=loss, nats per token").count() == 1
    (ended,) = opened.locator("figure:has(.outcomes)").all_inner_texts()
    assert ended.count("answered, right") == 1
    assert "read by one rule: one pair of <answer> tags" in ended
    assert SCRIPT in opened.locator(".eyebrow").text_content()


def test_the_reader_searches_and_filters(opened):
    assert opened.locator("#list li:visible").count() == 3
    opened.get_by_label("Search").fill("quellan")
    assert opened.locator("#list li:visible").count() == 1
    assert opened.locator("#shown").inner_text() == "1 of 3 cases"
    opened.get_by_label("Search").fill("")
    opened.get_by_label("base", exact=True).select_option("never")
    assert opened.locator("#list li:visible").count() == 2
    opened.get_by_label("sft", exact=True).select_option("sometimes")
    assert opened.locator("#list li:visible .id").all_text_contents() == ["FICTION-1"]


def test_the_reader_goes_through_the_cases_by_button_and_key(opened):
    title = opened.locator("#case-title")
    assert title.inner_text() == "Harrow fever"
    opened.get_by_role("button", name="Next").click()
    _at(opened, "2 of 3")
    opened.keyboard.press("ArrowRight")
    _at(opened, "3 of 3")
    assert opened.get_by_role("button", name="Next").is_disabled()
    opened.keyboard.press("k")
    opened.keyboard.press("k")
    _at(opened, "1 of 3")
    opened.keyboard.press("/")
    opened.keyboard.type("jk")
    assert opened.get_by_label("Search").input_value() == "jk"
    assert title.inner_text() == "Harrow fever"


def test_hostile_text_shows_as_text_everywhere(opened):
    opened.locator("#list button").nth(1).click()
    _at(opened, "2 of 3")
    for summary in opened.locator("summary").all():
        if summary.locator("xpath=..").get_attribute("open") is None:
            summary.click()
    shown = opened.locator("#case").inner_text()
    assert opened.locator("#case-title").inner_text() == HOSTILE_NAME
    for text in (SCRIPT, CLOSING, "⟨U+202E⟩", "not exactly one answer", "]]> <!-- 😀"):
        assert text in shown
    assert opened.locator("#case script, #case img, #case a").count() == 0
    assert SCRIPT in opened.locator("#case pre").first.text_content()


def test_what_has_no_answer_is_folded_and_its_text_and_reason_are_said_once(opened):
    opened.locator("#list button").nth(1).click()
    _at(opened, "2 of 3")
    failed = opened.locator(".candidate").first.locator("details").first
    assert failed.get_attribute("open") is None
    failed.locator("summary").click()
    shown = failed.inner_text()
    assert (shown.count(SCRIPT), shown.count("answer")) == (1, 1)
    answered = opened.locator(".candidate").first.locator("details").nth(1)
    assert answered.get_attribute("open") is not None


def test_the_first_case_and_the_list_are_there_to_print_as_soon_as_the_page_has_loaded(
    browser, workdir
):
    tab = browser.new_page()
    tab.emulate_media(media="print")
    tab.add_init_script("""addEventListener("load", () => {
      const shown = (s) => document.querySelector(s).checkVisibility() &&
        document.querySelector(s).innerText;
      window.atLoad = [shown("#list"), shown("#case")];
    })""")
    tab.goto(workdir.report.as_uri())
    listed, case = tab.evaluate("window.atLoad")
    tab.close()
    assert all(one.final_diagnosis in listed for one in CASES)
    assert "Harrow fever" in case and "lamplighter" in case and "There is no frost" in case


def test_statements_point_to_their_evidence(opened):
    cells = opened.locator(".statements tbody tr").first.locator("td")
    assert "not found" in cells.nth(0).inner_text()
    assert cells.nth(1).inner_text() == "✓ found"
    weak = opened.locator(".statements tbody tr").nth(1).locator("td").nth(1)
    assert "quote not in the trace" in weak.inner_text()
    marks = opened.locator("#case mark")
    assert marks.all_inner_texts() == ["HUMMING  knees1"]
    opened.locator(".statements tbody tr").first.hover()
    assert "lit" in marks.first.get_attribute("class")


def test_a_failed_completion_says_why_and_is_neither_right_nor_wrong(opened):
    opened.locator("#list button").nth(2).click()
    _at(opened, "3 of 3")
    failed = opened.locator(".candidate").first.locator("details").nth(1)
    failed.locator("summary").click()
    assert "infrastructure error" in failed.inner_text()
    assert f"503 {SCRIPT}" in failed.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_the_page_fits_a_phone(opened, contrasts, scheme):
    opened.set_viewport_size({"width": 360, "height": 740})
    opened.emulate_media(color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    scrollers = "[...document.querySelectorAll('main *')].filter((e) => e.scrollHeight > " + (
        "e.clientHeight + 1 && /auto|scroll/.test(getComputedStyle(e).overflowY)).length"
    )
    assert opened.evaluate(scrollers) == 0
    assert not opened.locator("#list").is_visible()
    opened.get_by_role("button", name="List the cases").click()
    opened.locator("#list button").nth(1).click()
    _at(opened, "2 of 3")
    assert not opened.locator("#list").is_visible()
    opened.get_by_label("Search").fill("quellan")
    assert opened.locator("#list li:visible").count() == 1
    ratios = contrasts(opened)
    assert len(ratios) > 50
    assert [text for ratio, text in ratios if ratio < 4.5] == []


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.promise("The report shows them in a table.")
def test_the_reader_sees_the_judges_side_by_side_when_there_are_several(
    browser, contrasts, tmp_path, width
):
    workdir, other, hostile = Workdir(tmp_path), _config(), f"o{SCRIPT}"
    with other.unlocked():
        other.judge.models = ("offline", f"{hostile}=openai:m")
    with Ledger(workdir.ledger) as ledger:
        _write(ledger)
        for model in PLAN:  # the other judge finds every diagnosis right
            scope = Scope("diagnosis", model, JUDGE)
            rows = {
                row: dataclasses.replace(row, judge=hostile)
                for row, attempt in ledger.answers(scope).items()
                if attempt
            }
            ledger.declare(Scope("diagnosis", model, hostile), dict.fromkeys(rows.values(), "d"))
            for row in rows.values():
                same = {"outcome": Outcome.OK, "verdict": {"same": True}, "text": '{"same": true}'}
                ledger.write(Attempt(row=row, digest="d", attempt=1, **same))
    workdir.note("data", {"dataset": "fictional", "synthetic": True, "cases": 3})
    results = scoring.score(workdir, other)
    page.report(workdir, other, CASES)
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto(workdir.report.as_uri())
    judges = tab.get_by_role("region", name="Table of judges")
    rows = judges.locator("tbody tr")
    assert rows.count() == 2
    assert rows.nth(0).locator("th").inner_text() == JUDGE
    assert rows.nth(1).locator("th").inner_text() == hostile
    assert "headline" in rows.nth(0).inner_text()
    agreed = results["judges"][hostile]["agreement"]["diagnosis"]
    assert 0 < agreed["raw"]["value"] < 1
    words = rows.nth(1).inner_text()
    assert f"{agreed['raw']['value']:.2f}" in words and f"{agreed['ac1']['value']:.2f}" in words
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert [text for ratio, text in contrasts(tab) if ratio < 4.5] == []
    tab.close()


def test_one_judge_has_no_table_of_judges(html):
    assert "Table of judges" not in html
