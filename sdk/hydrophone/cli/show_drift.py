"""How the watch over a stream and its drifts look."""

import math
from typing import Any, Final

from rich.text import Text

from hydrophone.cli.screen import UNKNOWN, Row, Screen, moment, number, printable, span
from hydrophone.cli.sparkline import gauge

Answer = dict[str, Any]
_GAUGE_WIDTH: Final = 20
_CONTAMINATED: Final = 0.01
_STYLES: Final = {"watching": "bold green", "drifting": "bold red", "insufficient": "bold yellow"}
_PROMISES: Final = {"run_length": "at any time", "asymptotic": "for large references", "none": "none"}
_NO_WATCH: Final = {
    "off": "the daemon watches no stream: drift.enabled = false",
    "starting": "the stream's learner is starting; ask again in a moment",
}
_MOST_FEATURES: Final = 20


def status(screen: Screen, answer: Answer) -> None:
    """State, references, detectors with how near they are to an alarm, budget, novelty, and the latest drifts."""
    watch(screen, answer)
    if answer["state"] not in _NO_WATCH:
        _detections(screen, answer["detections"])


def watch(screen: Screen, answer: Answer) -> None:
    """The watch as it stands, without what it found."""
    state = answer["state"]
    screen.line((answer["stream"], "bold cyan"), "  ", (state, _STYLES.get(state, "bold")), _since(answer))
    if answer["problem"]:
        screen.line((answer["problem"], "bold yellow"))
    if state in _NO_WATCH:
        if not answer["problem"]:
            screen.line(_NO_WATCH[state])
        return
    if not answer["strata"]:
        screen.line("no request has ended yet")
    for stratum in answer["strata"]:
        _stratum(screen, stratum)
    _detectors(screen, answer)
    _novelty(screen, answer["novelty"])


def detection(screen: Screen, answer: Answer) -> None:
    """A drift: since when, in which features, requests and attributes."""
    own = answer["detection"]
    part = f" ({printable(own['stratum'])})" if own["stratum"] else ""
    screen.line(
        (f"drift {own['number']}", "bold cyan"),
        f" of {own['stream']}{part}, found {moment(own['time'])} by {own['detector']}, ",
        "not over" if own["ended"] is None else f"over {moment(own['ended'])}",
    )
    screen.line(
        f"it reached {number(own['statistic'], ',.3g')} of {number(own['threshold'], ',.3g')} at request "
        f"{own['unit'] + 1:,} since reference {own['reference_version']} ({printable(own['reference_name'])})"
    )
    promise = _PROMISES.get(own["guarantee"], own["guarantee"])
    screen.line(f"the promise: one false alarm in {own['run_length']:,.0f} requests, {promise}")
    if own["change_time"] is not None:
        low, high = own["change_low"], moment(own["change_high"])
        between = f"between {moment(low)} and {high}" if low else f"{high} at the latest"
        screen.line(f"it began about {moment(own['change_time'])} ({between})")
    elif own["change_high"] is not None:
        screen.line(f"it began before the requests that are held, {moment(own['change_high'])} at the latest")
    if own["units_after"] is not None:
        again = "" if not own["telling"] else ", told again since it was found"
        screen.line(f"what follows is of {number(own['units_after'])} requests since it began{again}")
    if own["shift"] is not None:
        screen.line(f"they lie {own['shift']:+.2f} standard deviations along the change")
    if own["dictionary_changed"]:
        version = own["dictionary_version"]
        screen.line(f"features are told by version {version} of the dictionary, before and after; there is a newer one")
    _features(screen, answer)
    _requests(screen, answer["requests"])
    _attributes(screen, answer["attributes"])


# -- parts --------------------------------------------------------------------------------------------------------


def _since(answer: Answer) -> str:
    return f" since {moment(answer['drift_since'])}" if answer["drift_since"] is not None else ""


def _stratum(screen: Screen, one: Answer) -> None:
    """What a part of the traffic is compared with, and what speaks against that."""
    part = (f"{printable(one['stratum'])}: ", "cyan") if one["stratum"] else ""
    if one["reference"] is None:
        screen.line(part, f"{one['collected']:,} of the {one['wanted']:,} requests of a reference have come")
        if one["problem"]:
            screen.line((one["problem"], "bold yellow"))
        return
    reference = one["reference"]
    rate = "" if reference["units_per_second"] is None else f", {reference['units_per_second']:,.3g} per second"
    screen.line(
        part,
        f"{one['watched']:,} requests watched since reference {reference['version']} ",
        (printable(reference["name"]), "cyan"),
        f" ({reference['source']}): {reference['units']:,} requests{rate}, {moment(reference['since'])} to "
        f"{moment(reference['until'])}",
    )
    if reference["thin"] > 1:
        near = number(reference["autocorrelation_time"], ".1f")
        screen.line(f"neighbours resemble each other for {near} requests: one of {reference['thin']} is looked at")
    if reference["halves_p"] is not None and reference["halves_p"] < _CONTAMINATED:
        told = f"its halves differ (p = {reference['halves_p']:.2g}): the stream was changing while it was taken"
        screen.line((told, "bold yellow"))


def _detectors(screen: Screen, answer: Answer) -> None:
    detectors = [(stratum["stratum"], one) for stratum in answer["strata"] for one in stratum["detectors"]]
    divided = len(answer["strata"]) > 1
    rows: list[Row] = [
        [
            *([printable(part)] if divided else []),
            Text(one["name"], style="cyan"),
            gauge(_log(one["statistic"]), _log(one["threshold"]), _GAUGE_WIDTH),
            number(one["statistic"], ",.3g"),
            number(one["threshold"], ",.3g"),
            number(one["run_length"], ",.0f"),
            span(one["seconds"]),
            _PROMISES.get(one["guarantee"], one["guarantee"]),
        ]
        for part, one in detectors
    ]
    if rows:
        columns = ("detector", "evidence, log", "now>", "alarm at>", "false alarm per requests>", "or per>", "promise")
        screen.table((*(["part"] if divided else []), *columns), rows)
    budget = answer["budget"]
    alarms = number(budget["false_alarms"], ",.3g")
    text = f"budget: {alarms} false alarm{'' if alarms == '1' else 's'} in {span(budget['period_seconds'])}"
    left_out = sum(one["left_out"] for _, one in detectors)
    if left_out:
        text += f"; {left_out:,} requests were left out, since they are not finite"
    screen.line((text, "dim"))


def _log(evidence: float | None) -> float | None:
    """Evidence as it is drawn: it multiplies, so that a bar of the plain number would be empty until the last."""
    return None if evidence is None else math.log1p(max(0.0, evidence))


def _novelty(screen: Screen, one: Answer | None) -> None:
    if one is None:
        return
    expected = "" if one["reference_share"] is None else f"; in the reference {one['reference_share']:.2%}"
    share = number(one["share"], ".2%")
    screen.line(f"novel requests (p <= {one['p']:g}): {one['novel']:,} of {one['units']:,} ({share}){expected}")


def _detections(screen: Screen, items: list[Answer]) -> None:
    if not items:
        screen.line("no drift so far")
        return
    divided = any(one["stratum"] for one in items)
    rows: list[Row] = [
        [
            Text(str(one["number"]), style="cyan"),
            *([printable(one["stratum"])] if divided else []),
            moment(one["time"]),
            "not over" if one["ended"] is None else moment(one["ended"]),
            moment(one["change_time"]),
            one["detector"],
            number(one["changed_features"]),
            number(one["units_after"]),
        ]
        for one in items
    ]
    columns = ("found", "over", "began about", "detector", "features>", "told from requests>")
    screen.table(("drift>", *(["part"] if divided else []), *columns), rows)


def _features(screen: Screen, answer: Answer) -> None:
    rows: list[Row] = [
        [
            Text(str(one["index"]), style="cyan"),
            number(one["index_now"], "d"),
            number(one["rate_before"], ".2%"),
            number(one["rate_after"], ".2%"),
            number(one["effect"], "+.2f"),
            number(one["q"], ".2g"),
            printable(one["label"] or UNKNOWN),
        ]
        for one in answer["features"][:_MOST_FEATURES]
    ]
    if not rows:
        screen.line("which features changed is not known")
        return
    screen.table(("feature>", "now>", "before>", "after>", "effect>", "q>", "label"), rows)
    first = answer["features"][0]
    told = answer["detection"]["changed_features"]
    among = "" if told is None else f"; {told:,} changed (q <= 0.1)"
    if len(answer["features"]) > _MOST_FEATURES:
        among += "; --json has more"
    screen.line(
        (f"in {first['units_after']:,} requests after, {first['units_before']:,} of the reference{among}", "dim")
    )


def _requests(screen: Screen, items: list[Answer]) -> None:
    rows: list[Row] = [
        [printable(one["request"] or UNKNOWN), moment(one["started"]), number(one["score"], ".3g")] for one in items
    ]
    if rows:
        screen.table(("carried by", "began", "score>"), rows)


def _attributes(screen: Screen, items: list[Answer]) -> None:
    rows: list[Row] = [
        [
            printable(f"{one['attribute']}={one['value']}"),
            number(one["share_before"], ".1%"),
            number(one["share_after"], ".1%"),
            number(one["share_q"], ".2g"),
            number(one["shift"], "+.2f"),
            number(one["elsewhere"], "+.2f"),
            number(one["shift_q"], ".2g"),
        ]
        for one in items
    ]
    if rows:
        screen.table(("attribute", "before>", "after>", "q>", "moved>", "others>", "q>"), rows)
