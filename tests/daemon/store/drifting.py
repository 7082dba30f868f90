"""Rows of drifts, references and novel requests, as a watch writes them."""

from generated import SECOND, START, as_table

HOUR = 3600 * SECOND


def reference(version, *, key=7, stratum="", name="default", source="next", made=START, halves_p=0.5):
    """The row of a reference of 1,000 requests that came in the hour before."""
    row = {
        "stream_key": [key], "stratum": [stratum], "name": [name], "version": [version], "source": [source],
        "made": [made], "units": [1000], "since": [made - HOUR], "until": [made], "units_per_second": [0.25],
        "autocorrelation_time": [None], "thin": [1], "halves_p": [halves_p],
    }  # fmt: skip
    return {"reference": as_table("reference", row)}


def drift(
    number, time, *, key=7, stratum="", detector="betting", reference_version=1, dictionary_version=1, change=None,
    telling=0, after=30,
):  # fmt: skip
    """The row of a drift that was found at ``time`` and began at ``change``, with a minute to either side."""
    minute = 60 * SECOND
    row = {
        "stream_key": [key], "number": [number], "stratum": [stratum], "detector": [detector],
        "guarantee": ["run_length"], "time": [time], "unit": [41], "statistic": [2500.0],
        "threshold": [2000.0], "run_length": [2000.0],
        "reference_name": ["default"], "reference_version": [reference_version],
        "dictionary_version": [dictionary_version], "change_time": [change],
        "change_low": [None if change is None else change - minute],
        "change_high": [None if change is None else change + minute],
        "units_after": [None if change is None else after],
        "shift": [None if change is None else 1.5], "changed_features": [2], "dictionary_changed": [False],
        "telling": [telling],
    }  # fmt: skip
    return {"detection": as_table("detection", row)}


def end(number, time, *, key=7):
    """The row of the end of a drift."""
    return {"detection_end": as_table("detection_end", {"stream_key": [key], "number": [number], "time": [time]})}


def about(
    number, *, key=7, features=((3, 1), (9, None)), requests=((11, 4.0), (12, 2.5)), tenants=("acme",), telling=0,
):  # fmt: skip
    """What a drift is about: features as (index, id), requests as (key, score), and values of the attribute tenant."""
    count = len(features)
    rows = {
        "stream_key": [key] * count, "number": [number] * count, "rank": list(range(count)),
        "feature": [index for index, _ in features], "feature_id": [feature_id for _, feature_id in features],
        "rate_before": [0.1] * count, "rate_after": [0.3] * count, "units_before": [1000] * count,
        "units_after": [30] * count, "effect": [0.5] * count, "p": [0.001] * count, "q": [0.01] * count,
        "telling": [telling] * count,
    }  # fmt: skip
    carried = {
        "stream_key": [key] * len(requests), "number": [number] * len(requests), "rank": list(range(len(requests))),
        "request_key": [request for request, _ in requests], "score": [score for _, score in requests],
        "telling": [telling] * len(requests),
    }  # fmt: skip
    shares = {
        "stream_key": [key] * len(tenants), "number": [number] * len(tenants), "attribute": ["tenant"] * len(tenants),
        "value": list(tenants), "units_before": [200] * len(tenants), "units_after": [27] * len(tenants),
        "share_before": [0.2] * len(tenants), "share_after": [0.9] * len(tenants), "share_q": [1e-6] * len(tenants),
        "shift": [2.0] * len(tenants), "elsewhere": [None] * len(tenants), "shift_q": [None] * len(tenants),
        "telling": [telling] * len(tenants),
    }  # fmt: skip
    return {
        "detection_feature": as_table("detection_feature", rows),
        "detection_request": as_table("detection_request", carried),
        "detection_attribute": as_table("detection_attribute", shares),
    }


def novel(request, time, *, key=7, p=0.004, reference_version=1):
    """The row of a novel request."""
    row = {
        "stream_key": [key], "request_key": [request], "time": [time], "p": [p],
        "reference_version": [reference_version],
    }  # fmt: skip
    return {"novel_request": as_table("novel_request", row)}
