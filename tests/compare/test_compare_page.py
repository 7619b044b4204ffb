"""The page of `mcr compare` in a real browser."""

import re

import numpy as np
import pytest
from workdirs import cases, scored

from mcr_jax.compare import forest
from mcr_jax.compare.chosen import chosen
from mcr_jax.compare.pairs import numbers
from mcr_jax.workdir import Workdir

SCRIPT = "<script>alert('from a diagnosis')</script>"
CLOSING = "</style></script><img src=x onerror=\"alert('closing')\">"
BIDI = "left \u202eright to left\u202c"
FOREST = "section[aria-labelledby=h-differences] tbody tr:has(svg)"
NAMES = ["base", f"sft {CLOSING}", "third"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    rng = np.random.default_rng(0)
    models = {
        name: cases((rng.random((40, 2)) < share).astype(int).tolist())
        for name, share in zip("abc", (0.2, 0.6, 0.65), strict=True)
    }
    models["c"]["0" * 64] = [None, None]
    made = chosen([str(scored(tmp_path_factory.mktemp("w"), models).path)])
    return numbers([_renamed(model, name) for model, name in zip(made, NAMES, strict=True)])


def _renamed(model, label):
    return type(model)(**{**vars(model), "label": label})


@pytest.fixture(scope="module")
def html(found):
    names = {f"{number:064x}": (f"FICTION-{number}", "Sable gout") for number in range(40)}
    for pair in found["disagreements"]:
        names[pair["b_more"][0]["case"]] = (
            f"FICTION {CLOSING}",
            f"{SCRIPT} {BIDI} {{{{ 7 * 7 }}}}",
        )
    return forest.page(found, [f"prompt: {SCRIPT} (base)"], names, fictional=True)


@pytest.fixture
def opened(browser, html, tmp_path):
    """The page in a browser; nothing untoward may have happened by the end of a test."""
    path = tmp_path / "compare.html"
    path.write_text(html, encoding="utf-8")
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    untoward = []
    tab.on("dialog", lambda dialog: (untoward.append(f"dialog {dialog.message}"), dialog.dismiss()))
    tab.on("console", lambda message: untoward.append(f"console {message.text}"))
    tab.on("pageerror", lambda error: untoward.append(f"error {error}"))
    tab.on("request", lambda request: untoward.append(f"request {request.url}"))
    tab.goto(path.as_uri())
    yield tab
    tab.close()
    assert untoward == [f"request {path.as_uri()}"]


def test_no_hostile_text_reaches_the_html_as_markup(html):
    assert "<script" not in html and "<img" not in html and html.count("</style") == 1
    assert "49" not in re.findall(r"Sable[^<]*|\{\{[^<]*", html)
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", html)


def test_the_page_loads_nothing_and_runs_nothing(html):
    assert not re.search(r'(?:src|href)="(?!#|data:,")', html)
    assert "url(" not in html and "@import" not in html and "script-src" not in html
    assert "default-src 'none'" in html and "unsafe" not in html


def test_the_reader_sees_every_pair_on_every_metric(opened, found):
    rows = opened.locator(FOREST)
    assert rows.count() == len(found["comparisons"]) == 6
    for shown, entry in zip(rows.all(), sorted(found["comparisons"], key=_order), strict=True):
        text = shown.inner_text()
        assert text.startswith(f"{entry['b']} − {entry['a']}")
        assert forest.charts.points(entry["difference"]) in text
        assert shown.locator("svg.range .mark").count() == 1
    assert "of 40; bounds" in rows.nth(1).inner_text()
    assert "over all 6 tests" in opened.locator("main").inner_text()


def _order(entry):
    metrics = ["accuracy@1", "accuracy@5", "accuracy@10", "reasoning_recall"]
    return metrics.index(entry["metric"])


def test_the_drawn_interval_is_that_of_the_numbers(opened, found):
    entry = next(c for c in found["comparisons"] if c["metric"] == "accuracy@1")
    ends = max(abs(c[end]) for c in found["comparisons"] for end in ("low", "high"))
    reach = min(reach for reach in (0.05, 0.1, 0.2, 0.5, 1.0) if reach >= ends)
    row = opened.locator(FOREST).first
    line = row.locator("svg.range .whisker.wide")
    for name, end in (("x1", "low"), ("x2", "high")):
        drawn = (float(line.get_attribute(name)) - 10) / 300 * 2 * reach - reach
        assert drawn == pytest.approx(entry[end], abs=0.002)


def test_the_reader_opens_the_cases_that_one_model_gets_and_the_other_does_not(opened, found):
    assert opened.locator("#cases h3").count() == 3
    details = opened.locator("#cases details").nth(1)
    assert details.get_attribute("open") is None
    details.locator("summary").click()
    rows = details.locator("tbody tr")
    assert rows.count() == len(found["disagreements"][0]["b_more"])
    text = rows.first.inner_text()
    assert SCRIPT in text and "⟨U+202E⟩" in text and "{{ 7 * 7 }}" in text
    assert "2 of 2 right" in text and "0 of 2 right" in text


def test_the_reader_sees_what_was_compared(browser, tmp_path):
    judge = {"identity": "rules/1", "prompts": {"judge_diagnosis": "a" * 64}, "max_tokens": 256}
    for name, rights, split in (("one", [[0, 1]] * 30, "test"), ("two", [[0, 1]] * 30, "val")):
        path = tmp_path / name
        scored(path, {"m": cases(rights)}, judge=judge, data={"split": split})
        made = Workdir(path)
        made.note("sample.m", {"identity": f"openai/{name}"})
    models = chosen([str(tmp_path / "one"), str(tmp_path / "two")])
    page = tmp_path / "page.html"
    page.write_text(forest.page(numbers(models), [], {}), encoding="utf-8")
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    tab.goto(page.as_uri())
    rows = tab.locator("section[aria-labelledby=h-facts] tr").all()
    facts = {row.locator("th").inner_text(): row.locator("td").inner_text() for row in rows}
    assert {name: text.split() for name, text in facts.items()} == {
        "judge": ["offline"],
        "judge's identity": ["rules/1"],
        "judge's version (diagnosis)": ["not", "reported"],
        "judge's version (reasons)": ["not", "reported"],
        "judge.repeat": ["1"],
        "judge.max_tokens": ["256"],
        "judge's prompts": ["judge_diagnosis", "a" * 12],
        "reading of answers": ["lenient"],
        "prompt": ["p" * 64],
        "split": ["test", "one:m", "val", "two:m"],
        "samples per case": ["2"],
        "data": ["dataset", "fictional"],
        "model": ["openai/one", "one:m", "openai/two", "two:m"],
        "cases in the workdir": ["30"],
    }
    assert "equal in all 30 cases" in tab.locator(FOREST).first.inner_text()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.close()


def test_hostile_names_show_as_text(opened):
    assert CLOSING in opened.locator("#h-models + div").inner_text()
    assert SCRIPT in opened.locator(".note").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_the_page_fits_a_phone(opened, contrasts, scheme):
    opened.set_viewport_size({"width": 360, "height": 740})
    opened.emulate_media(color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    for details in opened.locator("details").all():
        details.locator("summary").click()
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    ratios = contrasts(opened)
    assert len(ratios) > 50
    assert [text for ratio, text in ratios if ratio < 4.5] == []


def test_two_models_have_a_sentence_and_open_lists(browser, tmp_path):
    made = scored(tmp_path / "w", {"base": cases([0, 0, 1]), "sft": cases([1, 1, 1])})
    found = numbers(chosen([str(made.path)]))
    path = tmp_path / "two.html"
    path.write_text(forest.page(found, [], {}), encoding="utf-8")
    tab = browser.new_page()
    tab.goto(path.as_uri())
    assert tab.locator("h1").inner_text() == "sft against base: +66.7 points of accuracy."
    assert "adjusted" in tab.locator(".lede").inner_text()
    assert tab.locator("details[open] tbody tr").count() == 2
    assert "000000000000" in tab.locator("#cases").inner_text()
    tab.close()


def test_a_long_list_is_cut_and_says_so(tmp_path):
    count = forest.SHOWN + 7
    made = scored(tmp_path, {"a": cases([0] * count), "b": cases([1] * count)})
    html = forest.page(numbers(chosen([str(made.path)])), [], {})
    assert "7 more: see the numbers of --json" in html
