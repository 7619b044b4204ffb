"""Spending, counted from the ledger, and the limits of config.budget on a loopback server."""

import contextlib
import datetime
import json
import pathlib
import re
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcr_jax import config as configs
from mcr_jax import model_specs
from mcr_jax.errors import McrError, Stopped, UsageError
from mcr_jax.generate import driver, forecast, prices, spending
from mcr_jax.generate.api import Outcome, Request, Usage
from mcr_jax.generate.batch_wire import Batched
from mcr_jax.generate.budget import TOKENS_PER_CHARACTER, Amount, Budget, require_price
from mcr_jax.generate.ledger import Attempt, Ledger, RowKey, Scope
from mcr_jax.generate.openai import OpenAI
from mcr_jax.generate.questions import Reader

SCOPE = Scope("sample", "o")
SERVICE = "openai:m"
CALL = Usage(prompt=11, output=12, cached=3)  # of each reply of the loopback server
PROMPT = "Which rime hums?" * 20
SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


@pytest.fixture
def dear(tmp_path):
    """A file of prices: a dollar for a thousand tokens of any model."""
    file = tmp_path / "prices.toml"
    file.write_text(
        '[[price]]\nservice = "openai"\nmodel = "*"\ninput = 1000\noutput = 1000\nbatch = 0.5\n'
        'valid_from = 2020-01-01\nsource = "invented"\n'
    )
    return str(file)


def config(prices="", **limits):
    made = configs.default()
    made.prices = prices
    made.budget.update(limits)
    return configs.check(made, "test")


def jobs(count, prompt=PROMPT, **options):
    options = {"max_tokens": 40, **options}
    messages = ({"role": "user", "content": prompt},)
    return [
        driver.Job(
            row=RowKey(stage="sample", case=f"c{i}", model="o", sample=0),
            request=Request(key=f"c{i}", messages=messages, **options),
        )
        for i in range(count)
    ]


def run(ledger, made, limits, concurrency=4, **options):
    model = OpenAI("m", concurrency=concurrency, backoff=0.001)
    work = driver.declare(SCOPE, made, model, ledger, **options)
    return driver.answer(work, model, ledger, payments=Budget(limits, ledger).of(SERVICE))


def spent(ledger, of=None):
    return spending.total(spending.read(ledger), prices.load(of or ""))


def test_a_run_stops_at_the_limit_and_a_resumed_one_counts_what_was_spent(ledger, openai):
    for limit in (5, 5, 9, 12):
        with pytest.raises(Stopped) if limit < 12 else contextlib.nullcontext() as caught:
            run(ledger, jobs(12), config(requests=limit))
        assert len(openai.calls) == spent(ledger).requests == ledger.count() == limit
        if limit < 12:
            line = str(caught.value)
            assert f"{limit} requests of config.budget.requests={limit} are spent" in line
            assert "raise config.budget.requests" in line and "\n" not in line
    assert spent(ledger).tokens == 12 * 23


@pytest.mark.parametrize(("field", "limit"), [("tokens", 700), ("dollars", 0.7)])
@pytest.mark.parametrize("concurrency", [1, 8])
def test_no_more_is_spent_than_the_limit_and_no_call_that_fits_is_left_out(
    ledger, openai, dear, field, limit, concurrency
):
    with pytest.raises(Stopped, match=rf"of config.budget.{field}={limit:g} are spent, and the n"):
        run(ledger, jobs(60), config(dear, **{field: limit}), concurrency)
    total = spent(ledger, dear)
    assert getattr(total, field) <= limit
    most = round(len(PROMPT) * TOKENS_PER_CHARACTER) + 1 + 40  # of the next call
    assert total.tokens + most > 700
    assert total.requests == len(openai.calls)


def test_calls_in_flight_are_recorded_before_the_run_stops(ledger, openai):
    openai.gather(4)  # each reply waits for three others
    with pytest.raises(Stopped):
        run(ledger, jobs(12), config(requests=8))
    assert len(openai.calls) == ledger.count() == 8 and openai.most_in_flight == 4


def test_failed_attempts_count_and_free_retries_do_not(ledger, openai):
    empty, away = openai.says(""), openai.error(503, "busy", retry_after="0")
    openai.then(empty, away, empty, away, away)  # an empty answer is malformed, and paid
    with pytest.raises(Stopped):
        run(ledger, jobs(9), config(requests=6), concurrency=1)
    assert (len(openai.calls), spent(ledger).requests) == (9, 6)
    outcomes = [outcome for (outcome,) in ledger.select("SELECT outcome FROM attempts")]
    assert sorted(outcomes) == ["MALFORMED"] * 2 + ["OK"] * 4


def test_a_reply_without_an_answer_that_has_a_price_counts_within_the_run(ledger, openai):
    openai.then(openai.replies({"choices": [], "usage": {"prompt_tokens": 11}}))
    with pytest.raises(Stopped, match=r"^3 requests of "):
        run(ledger, jobs(9), config(requests=3), concurrency=1)
    assert (len(openai.calls), spent(ledger).requests) == (3, 2)


def test_equal_questions_are_one_call(ledger, openai):
    reader = Reader(parse=lambda request, text: text, name="text/1")
    run(ledger, jobs(7), config(requests=1), reader=reader)
    assert len(openai.calls) == 1 and ledger.count() == 7
    assert (spent(ledger).requests, spent(ledger).usage) == (1, CALL)


def test_no_limit_is_no_limit(ledger, openai):
    run(ledger, jobs(30), config())
    assert spent(ledger).requests == 30


def test_dollars_without_a_price_are_refused_before_a_call(ledger, openai, dear):
    limited = config(dollars=1.0)
    with pytest.raises(UsageError, match=r"price of openai:m is unknown.*config\.prices"):
        require_price(limited, SERVICE)
    with pytest.raises(UsageError, match="price of openai:m is unknown"):
        run(ledger, jobs(1), limited)
    require_price(config(dear, dollars=1.0), SERVICE)
    require_price(config(tokens=1), SERVICE)
    # A service that was paid before counts as well.
    run(ledger, jobs(1), config())
    with pytest.raises(UsageError, match="price of openai:m is unknown"):
        Budget(limited, ledger).of("gemini:gemini-3.5-flash-lite")
    assert len(openai.calls) == 1


AMOUNTS = st.tuples(st.floats(0, 1), st.integers(1, 1), st.integers(0, 1000))


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    with Ledger(tmp_path_factory.mktemp("budget") / "ledger.sqlite") as opened:
        yield opened


@given(
    st.lists(st.tuples(AMOUNTS, st.floats(0, 1), st.booleans()), max_size=60),
    st.floats(0.01, 5),
    st.integers(1, 5000),
)
def test_calls_that_take_no_more_than_was_reserved_never_go_over(empty, calls, dollars, tokens):
    budget = Budget(config(dollars=dollars, tokens=tokens), empty)
    flying, paid = [], Amount()
    for most, share, ends in calls:
        most = Amount(*most)
        if budget.admits(most):
            budget.hold(most)
            flying.append((most, Amount(most.dollars * share, 1, int(most.tokens * share))))
        if ends and flying:
            held, took = flying.pop(0)
            budget.settle(held, took)
            paid = Amount(*(a + b for a, b in zip(paid, took, strict=True)))
        assert paid.dollars <= dollars * (1 + 1e-9) and paid.tokens <= tokens


SPENT = st.builds(
    spending.Spent,
    scope=st.just(SCOPE),
    service=st.sampled_from(["gemini:gemini-3.5-flash-lite", "gemini:gemini-3.8-flash"]),
    tier=st.sampled_from(["", "batch"]),
    day=st.dates(datetime.date(2026, 11, 26), datetime.date(2027, 3, 1)),
    requests=st.integers(0, 10**6),
    usage=st.builds(Usage, prompt=st.integers(0, 10**9), output=st.integers(0, 10**9)),
)


@given(st.lists(SPENT, max_size=12), st.integers(0, 12))
def test_a_total_is_the_sum_of_its_parts_in_any_order(parts, cut):
    rows = prices.load()
    whole = spending.total(parts, rows)
    halves = [spending.total(half, rows) for half in (parts[cut:], parts[:cut])]
    assert whole.requests == sum(half.requests for half in halves)
    assert whole.tokens == sum(half.tokens for half in halves)
    assert whole.dollars == pytest.approx(sum(half.dollars for half in halves))
    assert spending.total(reversed(parts), rows).dollars == whole.dollars


def written(ledger, *attempts):
    """Writes attempts (row, changes), each a call of its own."""
    for number, (row, changes) in enumerate(attempts):
        fields = {"digest": f"d{number}", "attempt": 1, "outcome": Outcome.OK, "usage": CALL}
        ledger.write(Attempt(row=row, **{**fields, **changes}))


def flex(openai, file, tiers="", **limits):
    """Returns a config whose endpoint asks for the flex tier, with prices of it at `tiers`."""
    row = '[[price]]\nservice = "f"\nmodel = "m"\ninput = 500\noutput = 500\n'
    row += 'valid_from = 2020-01-01\nsource = "invented"\n'
    file.write_text(row + "".join(f'{row}tier = "{tier}"\n' for tier in tiers.split()))
    made = config(str(file), **limits)
    made.endpoints = (f"f={openai.url} service_tier=flex",)
    return made


def ask_in_tier(ledger, made, count=1):
    model = OpenAI("m", endpoint=model_specs.endpoints(made)["f"])
    work = driver.declare(SCOPE, jobs(count), model, ledger)
    return driver.answer(work, model, ledger, payments=Budget(made, ledger).of("f:m"))


@pytest.mark.promise("A tier without a row of its own has no price.")
def test_a_tier_is_priced_by_its_own_row_only(ledger, openai, tmp_path):
    file = tmp_path / "prices.toml"
    made = flex(openai, file, dollars=9.0)
    for check in (lambda: require_price(made, "f:m"), lambda: ask_in_tier(ledger, made)):
        with pytest.raises(UsageError, match="price of f:m in tier flex is unknown"):
            check()
    assert not openai.calls
    made = flex(openai, file, "flex", dollars=9.0)
    require_price(made, "f:m")
    ask_in_tier(ledger, made, 2)  # the server names no tier
    assert spent(ledger, made.prices).dollars == pytest.approx(2 * 23 * 500 / 1e6)
    (part,) = spending.read(ledger)
    assert (part.service, part.tier, part.requests) == ("f:m", "flex", 2)


def test_a_reply_of_an_unpriced_tier_ends_a_run_with_a_limit_in_dollars(ledger, openai, tmp_path):
    made = flex(openai, tmp_path / "prices.toml", "flex", dollars=9.0)
    said = json.loads(openai.says("x").body)
    openai.then(openai.replies({**said, "service_tier": "priority"}))
    for _ in range(2):
        with pytest.raises(UsageError, match="price of f:m in tier priority is unknown"):
            ask_in_tier(ledger, made)
    assert len(openai.calls) == ledger.count() == 1  # what was paid is kept
    assert spent(ledger, made.prices).dollars is None


def test_models_of_this_machine_cost_nothing_and_older_rows_are_named_by_judge_or_writer(ledger):
    sample = RowKey(stage="sample", case="c", model="sft", sample=0)
    written(
        ledger,
        (sample, {}),  # tokens of this machine
        (sample.judged("diagnosis", "offline"), {}),
        (sample.judged("diagnosis", "gemini:gemini-3.5-flash-lite"), {}),
        (RowKey(stage="stitch", case="c", model="gemini:gemini-3.5-flash-lite", sample=0), {}),
        (sample, {"service": SERVICE, "tier": "batch"}),
    )
    found = [(part.scope.stage, part.service, part.tier) for part in spending.read(ledger)]
    lite = "gemini:gemini-3.5-flash-lite"
    assert found == [
        ("diagnosis", lite, ""),
        ("sample", SERVICE, "batch"),
        ("stitch", lite, ""),
    ]
    total = spent(ledger)
    assert (total.dollars, total.unpriced) == (None, (f"{SERVICE} in tier batch",))


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_ledgers_of_earlier_schemas_have_spent_nothing_that_they_do_not_name(schema):
    golden = pathlib.Path(__file__).parent / "golden" / f"ledger_{schema}.sqlite"
    with Ledger(golden, readonly=True) as ledger:
        assert spending.read(ledger) == []


def test_a_damaged_time_is_one_line(ledger, tmp_path):
    written(ledger, (RowKey(stage="sample", case="c", model="o", sample=0), {"service": SERVICE}))
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db, db:
        db.execute("UPDATE attempts SET created = 'soon'")
    with pytest.raises(McrError, match=r"ledger.sqlite: damaged: column created .* sample o "):
        spending.read(ledger)


def test_a_forecast_counts_open_calls_by_the_prompts_then_by_recorded_calls(ledger, openai, dear):
    def line():
        model = OpenAI("m")
        work = driver.declare(SCOPE, jobs(10), model, ledger)
        return forecast.line(work.pending, Budget(config(dear), ledger).of(SERVICE), ledger)

    tokens = round(10 * len(PROMPT) * TOKENS_PER_CHARACTER)
    assert line() == (
        f"openai:m: 10 calls, about {tokens} tokens in (0.27 per character of the prompts), "
        f"at most 400 out (the token limits), at most {(tokens + 400) / 1000:.2f} USD"
    )
    with pytest.raises(Stopped):
        run(ledger, jobs(10), config(requests=4))
    assert line() == (
        "openai:m: 6 calls, about 66 tokens in (the mean of 4 recorded calls), about 72 out, "
        "about 0.14 USD"
    )
    run(ledger, jobs(10), config())
    assert line() == ""


def test_a_forecast_without_a_price_says_so_and_merges_equal_questions(ledger, openai):
    model, reader = OpenAI("m"), Reader(parse=lambda request, text: text, name="text/1")
    work = driver.declare(SCOPE, jobs(9), model, ledger, reader=reader)
    pending = [*work.pending, *work.pending]  # as two scopes have them
    line = forecast.line(pending, Budget(config(), ledger).of(SERVICE), ledger)
    assert line.startswith("openai:m: 1 call, ") and line.endswith(", price unknown")


def test_a_forecast_says_which_limit_of_the_budget_may_not_suffice(ledger, openai, dear):
    work = driver.declare(SCOPE, jobs(10), OpenAI("m"), ledger)

    def line(**limits):
        return forecast.line(
            work.pending, Budget(config(dear, **limits), ledger).of(SERVICE), ledger
        )

    assert line(requests=9, tokens=10**6).endswith(" USD; config.budget.requests=9 may not suffice")
    assert line(requests=10, dollars=99).endswith(" USD")


def test_a_forecast_of_batches_prices_few_calls_in_full_and_those_of_open_batches_not(
    ledger, openai, dear
):
    def line(count):
        work = driver.declare(SCOPE, jobs(count), batched, ledger)
        payments = Budget(config(dear), ledger).of(SERVICE, "batch")
        return work, forecast.line(work.pending, payments, ledger)

    def price(line):
        return float(re.search(r"([\d.]+) USD", line)[1])

    batched = Batched(OpenAI("m"), 1.0)
    _, few = line(9)
    assert few.endswith(" USD (9 calls at the full price: fewer than 10 are no batch)")
    work, many = line(18)
    assert many.endswith(" USD") and price(many) == pytest.approx(price(few), rel=0.02)
    driver.submit(work, batched, ledger)
    assert line(18)[1] == "openai:m: 18 calls are in open batches; 0 new"
    assert line(27)[1].startswith("openai:m: 18 calls are in open batches; 9 calls, about ")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published cases are in ../shared/data")
def test_the_tokens_per_character_are_those_of_real_prompts_and_tokenizers():
    import gzip

    import sentencepiece
    from tokenizers import Tokenizer

    from mcr_jax import prompts
    from mcr_jax.cases import read_cases
    from mcr_jax.data.example import prompt_messages
    from mcr_jax.judges import diagnosis, reasons

    folder = SHARED / "tokenizers"
    packed = gzip.decompress((folder / "deepseek_r1" / "tokenizer.json.gz").read_bytes())
    bpe = Tokenizer.from_str(packed.decode())
    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "spm_32k" / "tokenizer.model")
    )
    cases = read_cases(SHARED / "cases" / "medcasereasoning_val_16.jsonl")
    texts = [prompts.load(name) for name in ("diagnose", diagnosis.PROMPT, reasons.PROMPT)]
    asked = [
        *(prompt_messages(case, texts[0]) for case in cases),
        *(
            diagnosis.request("", c, c.final_diagnosis, texts[1], max_tokens=9).messages
            for c in cases
        ),
        *(reasons.request("", c, " ".join(c.statements), texts[2]).messages for c in cases),
    ]
    whole = "\n".join(message["content"] for messages in asked for message in messages)
    small = len(bpe.encode(whole, add_special_tokens=False).ids) / len(whole)
    large = len(pieces.encode(whole)) / len(whole)
    assert 0.18 < small < large <= TOKENS_PER_CHARACTER < 1.1 * large
