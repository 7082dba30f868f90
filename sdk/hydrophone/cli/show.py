"""How answers of the API look."""

from typing import Any, Final

from rich.text import Text

from hydrophone.cli.screen import UNKNOWN, Row, Screen, duration, moment, number, printable, size
from hydrophone.cli.sparkline import rates, sparkline

Answer = dict[str, Any]
_SERIES_WIDTH: Final = 60
_CONTEXT_BEFORE: Final = 12
_CONTEXT_AFTER: Final = 8


def status(screen: Screen, answer: Answer) -> None:
    """The daemon itself, what is wrong with it, then its streams."""
    own, store = answer["self"], answer["self"]["store"]
    state = ("ready", "bold green") if answer["ready"]["ready"] else ("not ready", "bold red")
    producers = "1 producer" if own["connections"] == 1 else f"{own['connections']} producers"
    screen.line(
        ("hydrophoned ", "bold"),
        f"{own['version']}  ",
        state,
        f"  pid {own['pid']}, up {_up(own)}, {producers} connected",
    )
    screen.line(
        f"processor {own['cpu_seconds']:,.1f} s, memory {size(own['rss_bytes'])}, store {size(store['file_bytes'])}, "
        f"last checkpoint {moment(own['last_checkpoint'])}"
    )
    for reason in answer["ready"]["reasons"]:
        screen.line((f"not ready: {reason}", "bold red"))
    if store["problem"]:
        screen.line((f"the store does not write: {store['problem']}", "bold red"))
    for name, counts in [("the store", store["rows_lost"]), *((one["name"], one["dropped"]) for one in own["stages"])]:
        if sum(counts.values()):
            screen.line((f"{name} dropped rows: {_reasons(counts)}", "bold yellow"))
    streams(screen, {"items": answer["streams"]})


def streams(screen: Screen, answer: Answer) -> None:
    """One line per stream, and what its producers say of hooks that are skipped."""
    if not answer["items"]:
        screen.line("no streams yet; attach a model: hydrophone.attach(model)")
        return
    columns = ("stream", "rows>", "dropped>", "learned>", "rows/s>", "lag s>", "fvu>", "l0>", "dead>", "features>")
    rows: list[Row] = []
    for one in answer["items"]:
        dropped = sum(one["rows_dropped"].values()) + sum(sum(p["dropped"].values()) for p in one["producers"])
        rows.append(
            [
                Text(one["id"], style="cyan"),
                number(one["rows_received"]),
                Text(number(dropped), style="bold yellow" if dropped else ""),
                number(one["rows_learned"]),
                number(one["learner_rows_per_second"], ",.0f"),
                number(one["lag_seconds"], ".1f"),
                number(one["fvu"], ".3f"),
                number(one["l0"], ".1f"),
                number(one["dead_fraction"], ".1%"),
                number(one["features"]),
            ]
        )
    screen.table(columns, rows)
    for one in answer["items"]:
        for producer in one["producers"]:
            fires, forwards = producer["fires"], producer["forwards"]
            # a report made during a forward pass may be one short
            if fires is not None and forwards is not None and fires < forwards - 1:
                told = f"the hook fired {fires:,} times in {forwards:,} forward passes; is the model compiled?"
                screen.line((f"{one['id']}: {told}", "bold yellow"))


def features(screen: Screen, answer: Answer) -> None:
    """One line per feature, and which rows the figures are of."""
    rows: list[Row] = [
        [
            Text(str(one["index"]), style="cyan"),
            number(one["rate"], ".3%"),
            number(one["fired"]),
            number(one["mean"], ".3f"),
            number(one["std"], ".3f"),
            number(one["max"], ".3f"),
            moment(one["last_fired"]),
        ]
        for one in answer["items"]
    ]
    if not rows:
        screen.line("no features: nothing is learned yet, or none is as asked")
        return
    screen.table(("feature>", "rate>", "fired>", "mean>", "std>", "max>", "last fired"), rows)
    more = "; there are more: --limit" if answer["next"] is not None else ""
    screen.line((f"of {answer['items'][0]['rows']:,} rows, {_range(answer)}{more}", "dim"))


def search(screen: Screen, answer: Answer) -> None:
    """One line per feature that was found."""
    rows: list[Row] = [
        [
            Text(str(one["index"]), style="cyan"),
            number(one["score"], ".3f"),
            number(one["rate"], ".1%"),
            number(one["precision"], ".1%"),
            number(one["fired"]),
            printable(one["label"] or UNKNOWN),
        ]
        for one in answer["items"]
    ]
    if not rows:
        screen.line("no features: none has such a label, or what was asked for is not among the sampled rows")
        return
    screen.table(("feature>", "score>", "rate>", "precision>", "fired>", "label"), rows)


def contrast(screen: Screen, answer: Answer) -> None:
    """One line per feature that differs, and of how many requests that is told."""
    rows: list[Row] = [
        [
            Text(str(one["index"]), style="cyan"),
            number(one["rate_a"], ".3%"),
            number(one["rate_b"], ".3%"),
            number(one["effect"], "+.2f"),
            number(one["q"], ".2g"),
            printable(one["label"] or UNKNOWN),
        ]
        for one in answer["items"]
    ]
    if rows:
        screen.table(("feature>", "rate A>", "rate B>", "effect>", "q>", "label"), rows)
    else:
        screen.line("no feature differs that much")
    screen.line((f"of {answer['requests_a']:,} requests of A and {answer['requests_b']:,} of B", "dim"))


def feature(screen: Screen, answer: Answer) -> None:
    """Figures, course and examples of one feature."""
    own = answer["feature"]
    screen.line((f"feature {own['index']}", "bold cyan"), f" of {answer['stream']}")
    screen.line(
        f"fired on {number(own['fired'])} of {own['rows']:,} rows ({number(own['rate'], '.3%')}), {_range(answer)}"
    )
    screen.line(
        f"value  mean {number(own['mean'], '.3f')}, std {number(own['std'], '.3f')}, max {number(own['max'], '.3f')}; "
        f"last fired {moment(own['last_fired'])}"
    )
    course = rates(answer["series"], _SERIES_WIDTH)
    known = [rate for rate in course if rate is not None]
    if known:
        screen.line("rate   ", (sparkline(course), "cyan"), f"  {min(known):.3%} to {max(known):.3%}")
    if not answer["examples"]:
        screen.line("no examples yet")
    for example in answer["examples"]:
        screen.line(*example_line(example))


def example_line(example: Answer) -> list[str | tuple[str, str]]:
    """One example: its value, and its context with the token it fired on marked, else where it stands."""
    parts: list[str | tuple[str, str]] = [(f"{example['value']:8.2f}  ", "dim")]
    if example["context"] is None:
        token = "" if example["token"] is None else f", token {example['token']}"
        request = UNKNOWN if example["request"] is None else printable(example["request"])
        return [*parts, f"request {request}, position {example['position']}{token}"]
    pieces = [UNKNOWN if piece is None else printable(piece) for piece in example["context"]]
    at = example["context_index"]
    return [
        *parts,
        "".join(pieces[max(0, at - _CONTEXT_BEFORE) : at]),
        (f"[{pieces[at]}]", "bold black on yellow"),
        "".join(pieces[at + 1 : at + 1 + _CONTEXT_AFTER]),
    ]


def request(screen: Screen, answer: Answer) -> None:
    """What is known of a request: its rows, its text where it was sent, its outcomes."""
    for one in answer["requests"]:
        screen.line(
            (printable(one["id"]), "bold cyan"),
            f"  {one['model']}@{one['version']}, began {moment(one['started'])}  {_labels(one['attributes'])}",
        )
        for rows in one["rows"]:
            screen.line(
                f"  {rows['stream'] or UNKNOWN}: {rows['rows']:,} rows "
                f"({rows['rows_prompt']:,} prompt, {rows['rows_decode']:,} decode)"
            )
        for run in one["tokens"] or ():
            screen.line("  ", "".join(UNKNOWN if piece is None else printable(piece) for piece in run["pieces"]))
    for outcome in answer["outcomes"]:
        screen.line(
            ("outcome", "bold"), f"  {_labels(outcome['labels'])}  by {outcome['source']}, {moment(outcome['time'])}"
        )


def _labels(labels: dict[str, Any]) -> str:
    return printable(" ".join(f"{name}={value}" for name, value in labels.items()))


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items() if count)


def _range(answer: Answer) -> str:
    if answer["since"] is None:
        return "no window is closed yet"
    return f"{moment(answer['since'])} to {moment(answer['until'])}"


def _up(own: Answer) -> str:
    return duration(own["started"], own["time"])
