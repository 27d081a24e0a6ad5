"""``cloister costs``: what turns took and cost, from the audit log; what they would have cost elsewhere; the prices."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from cloister import terminal
from cloister.cli.base import reading, store_option

if TYPE_CHECKING:
    from cloister.costs.compare import Compared
    from cloister.costs.rates import Price, Rates
    from cloister.costs.report import Key, Report, Sum
    from cloister.settings import Settings

_STEP = 20_000  # entries between two steps of the progress bar
_BY = ("tenant", "user", "session", "model", "day")


def _moment(context: click.Context, parameter: click.Parameter, said: str | None) -> datetime:
    """Read a length of time before now, or a day or moment, in UTC unless it says otherwise; now if nothing is said."""
    from cloister.settings import duration

    if said is None:
        return datetime.now(UTC)
    try:
        return datetime.now(UTC) - duration(said)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        raise click.BadParameter("must be a length such as 12h or 7d, or a day such as 2026-11-21") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _span(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options that say which turns it is about."""
    since = click.option(
        "--since",
        default="7d",
        show_default=True,
        metavar="WHEN",
        callback=_moment,
        help="From when on: 12h, 7d, 2026-11-01 …",
    )
    until = click.option("--until", metavar="WHEN", callback=_moment, help="Before when, likewise. [default: now]")
    tenant = click.option("--tenant", metavar="ID", help="Only this tenant's.")
    return since(until(tenant(command)))


_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object; amounts are text, and exact.")


@click.group(invoke_without_command=True)
@store_option
@click.option("--by", type=click.Choice(_BY), default="user", show_default=True, help="What the rows are.")
@_span
@_as_json
@click.pass_context
def costs(
    context: click.Context,
    read: Callable[..., Settings],
    by: str,
    since: datetime,
    until: datetime,
    tenant: str | None,
    as_json: bool,
) -> None:
    """Say what turns took and cost, by user, tenant, session, model or day.

    Reads the audit log, where every turn's tokens and cost stand; needs no master key. Days are those of UTC.

    \b
    Examples:
      cloister costs --by tenant --since 30d
      cloister costs --by user --since 2026-11-01 --until 2026-12-01 --json
      cloister costs compare --since 30d
      cloister costs prices
    """
    if context.invoked_subcommand is not None:
        given = [
            f"--{name.replace('as_json', 'json')}"
            for name in context.params
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        ]
        if given:
            raise click.UsageError(f"write {', '.join(given)} behind {context.invoked_subcommand}")
        return
    report = asyncio.run(_reported(read(), by, since, until, tenant))
    if as_json:
        rows = [{**dict(key), **_counts(one)} for key, one in report.sorted()]
        said = {"since": since.isoformat(), "until": until.isoformat(), "by": by, "rows": rows}
        click.echo(json.dumps({**said, "total": _counts(report.total), **_left_out(report)}))
        return
    if report.rows:
        cells = [[_label(key), *_cells(one)] for key, one in report.sorted()]
        columns = [by, "turns", "failed", "input", "cached", "output", "reasoning", "estimated", "cost"]
        styles = [*[None for _ in cells], "bold"]
        terminal.table(columns, [*cells, ["total", *_cells(report.total)]], styles)
    else:
        terminal.say(f"no turns since {terminal.moment(since)}", stderr=True)
    _warn(report)


async def _reported(settings: Settings, by: Any, since: datetime, until: datetime, tenant: str | None) -> Report:
    from cloister.costs.report import Report
    from cloister.model import to_micros
    from cloister.stores.base import every_entry

    async with reading(settings) as store:
        # Names come after the last moment, so that whoever came before it has one unless erased.
        owners = await store.audit_owners()
        report = Report(by, owners, since=to_micros(since), until=to_micros(until), tenant=tenant)
        read = 0
        done: Callable[[int], None] = _nothing
        with ExitStack() as stack:
            async for entry in every_entry(store):
                report.add(entry)
                read += 1
                # A pipe has no use for a bar, and a short log none either.
                if read == _STEP and sys.stderr.isatty():
                    done = stack.enter_context(terminal.progress("entries", None))
                if read % _STEP == 0:
                    done(_STEP)
    return report


def _nothing(more: int) -> None:
    """Show no progress."""


def _label(key: Key) -> str:
    """Name what a row is about."""
    said = dict(key)
    if "audit_id" in said:
        return f"{said['audit_id']} (erased)" if said["audit_id"] else "(nobody named)"
    if "user" in said:
        from cloister.model import Owner

        return str(Owner(said["tenant"], said["user"] or ""))
    if "tenant" in said:
        return said["tenant"] or "(no tenant)"
    if "model" in said:
        return f"{said['provider'] or '(own call)'} {said['model'] or '(not named)'}"
    return next(iter(said.values())) or "(none)"


def _money(money: dict[str, Any]) -> str:
    from cloister.costs.money import shown

    return ", ".join(f"{shown(amount)} {currency}" for currency, amount in sorted(money.items()))


def _cells(one: Sum) -> list[str]:
    usage = one.usage
    tokens = (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens)
    unpriced = f"no price: {one.unpriced_tokens:,} tokens" if one.unpriced_turns else ""
    cost = " + ".join(filter(None, [_money(one.money), unpriced])) or "-"
    share = f"{one.estimated_share:.0%}" if one.estimated_tokens else "-"
    return [f"{one.turns:,}", f"{one.failed:,}", *[f"{count:,}" for count in tokens], share, cost]


def _counts(one: Sum) -> dict[str, Any]:
    from cloister.costs.money import plain

    usage = one.usage
    return {
        "turns": one.turns,
        "failed": one.failed,
        "input_tokens": usage.input_tokens,
        "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "estimated_tokens": one.estimated_tokens,
        "cost": {currency: plain(amount) for currency, amount in sorted(one.money.items())},
        "unpriced": {"turns": one.unpriced_turns, "tokens": one.unpriced_tokens},
    }


def _left_out(report: Report) -> dict[str, Any]:
    names = sorted(report.unpriced, key=str)
    return {
        "unpriced_models": [{"provider": provider, "model": model} for provider, model in names],
        "unreadable_entries": report.unreadable,
        "turns_of_erased_users_left_out": report.unresolved,
    }


def _warn(report: Report) -> None:
    """Say what stands in no amount, so that a sum is not taken for all of it."""
    total = report.total
    if total.unpriced_turns:
        names = ", ".join(sorted(_label((("provider", name), ("model", model))) for name, model in report.unpriced))
        terminal.say(
            f"No price was known for {total.unpriced_turns:,} turns with {total.unpriced_tokens:,} "
            f"tokens ({names}): they are in no amount. Name a file with their prices with CLOISTER_PRICES, for turns "
            "from then on.",
            "yellow",
            stderr=True,
        )
    if report.unreadable:
        said = f"{report.unreadable:,} entries of turns cannot be read and are in no row; see `cloister audit verify`"
        terminal.say(said, "bold red", stderr=True)
    if report.unresolved:
        said = f"{report.unresolved:,} turns of erased users are left out: nothing says which tenant's they were"
        terminal.say(said, "yellow", stderr=True)


# --- other models -----------------------------------------------------------------------------------------------------


@costs.command()
@store_option
@_span
@click.option("--prices", "table", metavar="FILE", help="A TOML file of prices. [env: CLOISTER_PRICES]")
@_as_json
def compare(
    read: Callable[..., Settings],
    since: datetime,
    until: datetime,
    tenant: str | None,
    table: str | None,
    as_json: bool,
) -> None:
    """Say what the same numbers of tokens would have cost on every model of the price table.

    Other models cut texts into other tokens and answer at another length: it is the same counts, not a forecast.
    """
    from cloister.costs.compare import compare as compared
    from cloister.costs.money import plain

    settings = read() if table is None else read(prices=table)
    prices = settings.price_table()
    report = asyncio.run(_reported(settings, "model", since, until, tenant))
    usages = {(dict(key)["provider"], dict(key)["model"]): one.usage for key, one in report.rows.items()}
    rows = compared(usages, prices, datetime.now(UTC)) if usages else []
    if as_json:
        found = [
            {
                "provider": row.price.provider,
                "model": row.price.model,
                "cost": plain(row.cost),
                "currency": row.price.currency,
                "used": row.used,
                "cache_unknown": row.cache_unknown,
                "as_of": row.price.as_of.isoformat(),
                "source": row.price.source,
            }
            for row in rows
        ]
        said = {"since": since.isoformat(), "until": until.isoformat()}
        click.echo(json.dumps({**said, "total": _counts(report.total), "models": found, **_left_out(report)}))
        return
    if not rows:
        terminal.say(f"no turns since {terminal.moment(since)}", stderr=True)
        return
    total, usage = report.total, report.total.usage
    terminal.say(
        f"{total.turns:,} turns: {usage.input_tokens:,} tokens of input, {usage.cached_tokens:,} of them from a "
        f"cache, and {usage.output_tokens:,} of output; on record as {_money(total.money) or 'without a price'}"
    )
    columns = ["provider", "model", "would have cost", "", "price of", "source"]
    styles = ["bold" if row.used else None for row in rows]
    terminal.table(columns, [_compared(row) for row in rows], styles, wrap=True)
    terminal.say(
        "The same numbers of tokens at each price: another model cuts texts into other tokens and answers otherwise."
    )
    _warn(report)


def _compared(row: Compared) -> list[str]:
    notes = [
        "in use" if row.used else "",
        "cached input counted in full: no price for it is known" if row.cache_unknown else "",
        "dearer rates of long calls left out" if row.price.tiers else "",
    ]
    cost = _money({row.price.currency: row.cost})
    noted = "; ".join(filter(None, notes))
    return [row.price.provider, _model(row.price), cost, noted, row.price.as_of.isoformat(), row.price.source]


# --- the table --------------------------------------------------------------------------------------------------------


@costs.command()
@store_option
@_as_json
def prices(read: Callable[..., Settings], as_json: bool) -> None:
    """Show the price table: amounts for a million tokens, since when, and where they come from."""
    from cloister.costs.money import plain

    table = sorted(read().price_table().rows, key=lambda row: (row.key, row.as_of))
    if as_json:
        rows = [
            {
                "provider": row.provider,
                "model": row.model,
                "currency": row.currency,
                **{name: plain(rate) for name, rate in _rates(row).items()},
                "tiers": [
                    {"above": tier.above, **{name: plain(rate) for name, rate in _rates(tier).items()}}
                    for tier in row.tiers
                ],
                "as_of": row.as_of.isoformat(),
                "source": row.source,
            }
            for row in table
        ]
        click.echo(json.dumps({"per_tokens": 1_000_000, "prices": rows}))
        return
    today = datetime.now(UTC).date()
    cells = [
        [
            row.provider,
            _model(row),
            *[plain(rates[name]) if name in rates else "-" for name in ("input", "cached_input", "output")],
            row.currency,
            _since(row.as_of, today),
            "; ".join([row.source, *[_tier(tier.above, _rates(tier)) for tier in row.tiers]]),
        ]
        for row in table
        for rates in [_rates(row)]
    ]
    terminal.table(["provider", "model", "input", "cached", "output", "currency", "as of", "source"], cells, wrap=True)


def _model(row: Price) -> str:
    from cloister.costs.prices import ANY

    return "any other" if row.model == ANY else row.model


def _rates(rates: Rates) -> dict[str, Any]:
    names = ("input", "cached_input", "cache_write", "output", "reasoning")
    return {name: rate for name in names if (rate := getattr(rates, name)) is not None}


def _tier(above: int, rates: dict[str, Any]) -> str:
    from cloister.costs.money import plain

    return f"in calls of more than {above:,} tokens {plain(rates['input'])} and {plain(rates['output'])}"


def _since(day: date, today: date) -> str:
    return f"{day.isoformat()} (not yet)" if day - today > timedelta(0) else day.isoformat()
