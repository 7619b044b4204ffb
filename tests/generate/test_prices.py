"""Prices: which row counts on a day, the cost of tokens, and wrong files in one line."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax.errors import UsageError
from mcr_jax.generate import prices
from mcr_jax.generate.api import Usage
from mcr_jax.generate.prices import Price

DAY = datetime.date(2026, 11, 27)
COUNTS = st.integers(0, 10**9)
USAGES = st.builds(Usage, prompt=COUNTS, output=COUNTS, cached=COUNTS)
USD = st.floats(0, 1000)


def price(model="m", begin=DAY, **fields):
    fields = {"input": 1.0, "output": 2.0, "source": "invented", **fields}
    return Price(service="openai", model=model, valid_from=begin, **fields)


PRICES = st.builds(price, input=USD, output=USD, cached=USD, batch=st.floats(0, 1))


@given(PRICES, USAGES, USAGES)
def test_the_cost_of_two_calls_is_that_of_their_tokens_together(row, a, b):
    a, b = (Usage(prompt=u.prompt, output=u.output, cached=min(u.cached, u.prompt)) for u in (a, b))
    both = Usage(prompt=a.prompt + b.prompt, output=a.output + b.output, cached=a.cached + b.cached)
    assert row.cost(both) == pytest.approx(row.cost(a) + row.cost(b))


@given(PRICES, USAGES, COUNTS)
def test_no_token_is_free_of_its_price_and_none_has_a_negative_one(row, usage, more):
    larger = Usage(prompt=usage.prompt, output=usage.output + more, cached=usage.cached)
    assert 0 <= row.cost(usage) <= row.cost(larger) * (1 + 1e-12)
    dearest = max(row.input, row.cached) * usage.prompt + row.output * usage.output
    assert row.cost(usage) <= dearest / 1e6 * (1 + 1e-12)


@given(PRICES, USAGES)
def test_a_batch_costs_its_share_and_an_unknown_tier_has_no_price(row, usage):
    assert row.cost(usage, "batch") == pytest.approx(row.batch * row.cost(usage))
    assert row.cost(usage, "priority") is None
    assert price(batch=None).cost(usage, "batch") is None


def test_a_cost_is_the_one_worked_out_by_hand():
    row = price(input=0.30, output=2.50, cached=0.03)
    usage = Usage(prompt=2_000_000, output=400_000, cached=500_000)
    assert row.cost(usage) == pytest.approx(1.5 * 0.30 + 0.5 * 0.03 + 0.4 * 2.50)
    assert price(input=0.30, output=2.50).cost(usage) == pytest.approx(2 * 0.30 + 0.4 * 2.50)


def test_the_day_of_use_decides_the_row():
    found = prices.load()
    by_day = {
        "2026-11-25": None,  # before the day on which the source was read
        "2026-11-26": 0.75,
        "2026-12-31": 0.75,
        "2027-01-01": 1.50,
    }
    for day, usd in by_day.items():
        row = found.find("gemini:gemini-3.8-flash", datetime.date.fromisoformat(day))
        assert (row and row.input) == usd
    assert found.find("gemini:gemini-2.5-pro", datetime.date(2026, 11, 30)) is None
    assert found.find("gemini:gemini-2.5-pro", datetime.date(2026, 12, 1)).output == 2.50
    assert found.find("openai:gpt-unheard-of", DAY) is None
    assert found.find("offline", DAY) is None


def test_the_most_specific_row_counts_and_a_row_of_ones_own_before_all():
    early = DAY - datetime.timedelta(30)
    rows = [
        price("*", input=1),
        price("o*", input=2),
        price("o4-*", input=3),
        price("o4-mini", begin=early, input=4),
        price("o4-mini", input=5),
    ]

    def of(model, rows):
        return prices.Prices(rows).find(f"openai:{model}", DAY).input

    for order in (rows, rows[::-1]):
        found = [of(model, order) for model in ("x", "o3", "o4-nano", "o4-mini")]
        assert found == [1, 2, 3, 5]
    own = price("o4-*", begin=early, input=6, own=True)
    assert of("o4-mini", [*rows, own]) == 6


def test_rows_come_back_from_json_as_they_were():
    own = price("free*", input=0.0, output=0.0, cached=0.0, valid_to=DAY, own=True)
    for row in (own, price(batch=0.5), price(tier="flex")):
        found = prices.of_rows([row.plain()])
        assert found.find(f"openai:{row.model.rstrip('*')}", DAY, row.tier) == row


def test_a_tier_has_its_own_row_and_a_batch_a_share_of_the_standard_one():
    standard, flex = price(batch=0.5), price("*", tier="flex", input=0.25)
    found = prices.Prices([flex, standard])
    rows = {tier: found.find("openai:m", DAY, tier) for tier in ("", "batch", "flex", "priority")}
    assert rows == {"": standard, "batch": standard, "flex": flex, "priority": None}
    assert flex.cost(Usage(prompt=4_000_000), "flex") == 1.0
    assert flex.cost(Usage()) is None and "tier" not in standard.plain()


def test_a_file_of_ones_own_adds_rows(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        '[[price]]\nservice = "openai"\nmodel = "local*"\ninput = 0\noutput = 0\n'
        'valid_from = 2026-01-01\nsource = "our own machine"\n'
    )
    found = prices.load(str(file))
    assert found.find("openai:local-7b", DAY).cost(Usage(prompt=9, output=9)) == 0
    assert found.find("gemini:gemini-3.5-flash-lite", DAY).input == 0.30


ROW = {
    "service": '"openai"',
    "model": '"m"',
    "input": "1",
    "output": "2",
    "valid_from": "2026-01-01",
    "source": '"x"',
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": "-1"}, ["row 1", "field input", "0 to"]),
        ({"input": "nan"}, ["row 1", "field input"]),
        ({"output": None}, ["row 1", "field output is missing"]),
        ({"valid_from": "2026-01-01T00:00:00"}, ["row 1", "valid_from", "is not a day"]),
        ({"valid_from": '"soon"'}, ["row 1", "valid_from", "is not a day"]),
        ({"valid_to": "2025-01-01"}, ["row 1", "valid_to is before valid_from"]),
        ({"model": '"a*b"'}, ["row 1", "ends with *"]),
        ({"tier": '"batch"'}, ["row 1", "field tier", "batch is a field"]),
        ({"tier": '"default"'}, ["row 1", "field tier", "leave it out"]),
        ({"inputs": "3"}, ["row 1", "no field inputs", "valid_from"]),
        ({"source": "oops"}, ["cannot read"]),
    ],
)
def test_a_wrong_row_is_one_line_with_its_number(tmp_path, change, words):
    file = tmp_path / "mine.toml"
    fields = {name: value for name, value in (ROW | change).items() if value is not None}
    file.write_text("[[price]]\n" + "".join(f"{k} = {v}\n" for k, v in fields.items()))
    with pytest.raises(UsageError) as caught:
        prices.load(str(file))
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in ("mine.toml", *words)), line


@pytest.mark.parametrize("text", ["", "price = 3", '[table]\na = "b"', "[[price]]\n[[other]]"])
def test_a_file_without_rows_is_one_line(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=r"mine.toml"):
        prices.load(str(tmp_path / "mine.toml"))
    with pytest.raises(UsageError, match=r"gone.toml: .*No such file"):
        prices.load(str(tmp_path / "gone.toml"))
