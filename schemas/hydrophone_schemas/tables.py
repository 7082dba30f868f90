"""The tables of the store: Arrow schemas of what is written, column by column.

Times are UTC microseconds. A statistic that is unknown is null, never 0. ``*_window`` tables are append-only:
a closed window is written once and never changed. Keys are small integers so that hot tables stay narrow:
``stream`` gives a stream's key, ``request`` a request's.
"""

from typing import Final

import pyarrow as pa

TIME: Final = pa.timestamp("us")


def _schema(*columns: tuple[str, pa.DataType] | tuple[str, pa.DataType, bool]) -> pa.Schema:
    """Columns are not null unless a third element True says that null means unknown."""
    return pa.schema([pa.field(column[0], column[1], nullable=len(column) > 2) for column in columns])


STREAM: Final = _schema(
    ("stream_key", pa.int32()),
    ("id", pa.string()),
    ("model", pa.string()),
    ("version", pa.string()),
    ("site", pa.string()),
    ("fingerprint", pa.string()),
    ("width", pa.int32()),
    ("dtype", pa.string()),
    ("created", TIME),
)
"""One row per stream, when it is first opened."""

STREAM_WINDOW: Final = _schema(
    ("stream_key", pa.int32()),
    ("window_start", TIME),
    ("window_end", TIME),
    ("rows", pa.int64()),  # all rows of the window that reached the learner
    ("rows_sink", pa.int64()),  # of them: norm beyond the sink threshold; neither learned nor scored
    ("rows_quarantined", pa.int64()),  # of them: NaN or Inf somewhere; neither learned nor scored
    ("rows_late", pa.int64()),  # of them: time before the window's start
    ("rows_scored", pa.int64()),  # rows behind fvu, l0 and the feature statistics
    ("rows_learned", pa.int64()),  # rows trained on during the window (from the shuffle buffer)
    ("requests", pa.int64()),  # distinct requests among the rows
    ("fvu", pa.float64(), True),  # fraction of variance unexplained, on rows not yet trained on
    ("l0", pa.float64(), True),  # mean active features per scored row
    ("dead_fraction", pa.float64(), True),  # share of features that have not fired for dead_after_rows rows
    ("mean_norm", pa.float64(), True),  # mean Euclidean norm of scored rows, as captured
    ("median_norm", pa.float64(), True),  # running median norm behind the sink threshold
    ("features_fired", pa.int32(), True),  # features that fired at least once in the window
    ("dictionary_version", pa.int32()),
)

FEATURE_WINDOW: Final = _schema(
    ("stream_key", pa.int32()),
    ("window_start", TIME),
    ("window_end", TIME),
    ("feature", pa.int32()),
    ("fired", pa.int64()),  # rows on which the feature was active
    ("requests", pa.int64(), True),  # distinct requests among them
    ("sum", pa.float64()),
    ("sum_squares", pa.float64()),
    ("max", pa.float32()),
    ("buckets", pa.list_(pa.int16())),  # of its values, see docs/explanation/statistics.md: those not empty, rising
    ("counts", pa.list_(pa.int32())),  # for each of them: values in it
    ("dictionary_version", pa.int32()),
)
"""Only features that fired in the window have a row; join ``stream_window`` for the number of rows behind it."""

EXAMPLE: Final = _schema(
    ("stream_key", pa.int32()),
    ("feature", pa.int32()),
    ("value", pa.float32()),  # activation of the feature when the row was seen
    ("score", pa.float64()),  # rank key: log2(value) + rows seen / half-life, so that examples follow the dictionary
    ("request_key", pa.int64()),
    ("sequence", pa.int32()),
    ("position", pa.int32()),
    ("token", pa.int32(), True),
    ("time", TIME),
    ("written", TIME),
    ("dictionary_version", pa.int32()),
)
"""Top activating rows; the current ones are the best by ``score`` per (stream, feature)."""

REQUEST: Final = _schema(
    ("request_key", pa.int64()),
    ("id", pa.string()),
    ("model", pa.string()),
    ("version", pa.string()),
    ("producer", pa.string()),
    ("started", TIME),
    ("sample", pa.float64()),  # probability with which this request was taken
    ("attributes", pa.string()),  # JSON object
)

REQUEST_TOKENS: Final = _schema(
    ("request_key", pa.int64()),
    ("sequence", pa.int32()),
    ("position", pa.int32()),  # of the first piece
    ("pieces", pa.list_(pa.string())),
)
"""Token strings, kept only where the producer opted in with ``text=``."""

REQUEST_ROWS: Final = _schema(
    ("request_key", pa.int64()),
    ("stream_key", pa.int32()),
    ("window_start", TIME),
    ("rows", pa.int64()),
    ("rows_prompt", pa.int64()),
    ("rows_decode", pa.int64()),
)
"""Rows of a request received for a stream in a window."""

OUTCOME: Final = _schema(
    ("request_id", pa.string()),
    ("model", pa.string()),
    ("time", TIME),
    ("received", TIME),
    ("source", pa.string()),
    ("labels", pa.string()),  # JSON object
)

DICTIONARY: Final = _schema(
    ("stream_key", pa.int32()),
    ("version", pa.int32()),
    ("published", TIME),
    ("reason", pa.string()),  # first, moved, transform, requested, or resumed (from an older checkpoint)
    ("parent", pa.int32(), True),  # version it was matched with
    ("rows_learned", pa.int64()),
    ("features", pa.int32()),
    ("k", pa.int32()),
    ("variant", pa.string()),
    ("digest", pa.string(), True),  # sha256 of the artefact's weights; null where none was made
    ("fvu", pa.float64(), True),  # of the probe rows
    ("decoder_moved", pa.float64(), True),  # mean of 1 - cosine over living features that were kept
    ("codes_moved", pa.float64(), True),  # share of active (row, feature) pairs of the probe rows that are no longer so
    ("probe", pa.int32()),  # number of the sample of probe rows
    ("probe_rows", pa.int64()),  # its rows, behind fvu, codes_moved and the correlations of feature_match
)
"""One row per published version of a stream's dictionary."""

FEATURE: Final = _schema(
    ("stream_key", pa.int32()),
    ("dictionary_version", pa.int32()),
    ("feature_id", pa.int64()),
    ("feature", pa.int32()),
    ("state", pa.string()),  # born, renumbered (stands at another index) or lost
)
"""Where a feature's id stands: from this version on at index ``feature``, or no longer. An id is never used again."""

FEATURE_MATCH: Final = _schema(
    ("stream_key", pa.int32()),
    ("from_version", pa.int32()),
    ("to_version", pa.int32()),
    ("kind", pa.string()),  # stable, moved, split, merged, born or lost
    ("from_id", pa.int64(), True),
    ("to_id", pa.int64(), True),
    ("from_feature", pa.int32(), True),
    ("to_feature", pa.int32(), True),
    ("cosine", pa.float64(), True),  # of the decoder rows
    ("correlation", pa.float64(), True),  # of the activations on the probe rows
)
"""How the features of one version became those of the next."""

STREAM_SPLIT: Final = _schema(
    ("stream_key", pa.int32()),
    ("window_start", TIME),
    ("window_end", TIME),
    ("attribute", pa.string()),  # phase, or the name of a request attribute
    ("value", pa.string()),
    ("rows_scored", pa.int64()),
    ("requests", pa.int64()),
)
"""The rows of a window by phase and by the request attributes that are split by."""

FEATURE_SPLIT: Final = _schema(
    ("stream_key", pa.int32()),
    ("window_start", TIME),
    ("window_end", TIME),
    ("attribute", pa.string()),
    ("value", pa.string()),
    ("feature", pa.int32()),
    ("fired", pa.int64()),
    ("sum", pa.float64()),
    ("dictionary_version", pa.int32()),
)
"""``feature_window`` by phase and by the request attributes that are split by."""

REQUEST_FEATURE: Final = _schema(
    ("stream_key", pa.int32()),
    ("request_key", pa.int64()),
    ("window_start", TIME),
    ("rows_scored", pa.int64()),  # of the request in the window
    ("sample", pa.float64()),  # probability with which a request's features were kept
    ("features", pa.list_(pa.int32())),
    ("fired", pa.list_(pa.int32())),
    ("sum", pa.list_(pa.float32())),
    ("max", pa.list_(pa.float32())),
    ("dictionary_version", pa.int32()),
)
"""Which features fired in a sample of the requests, one row per request and window."""

LABEL: Final = _schema(
    ("stream_key", pa.int32()),
    ("feature_id", pa.int64()),
    ("feature", pa.int32()),
    ("dictionary_version", pa.int32()),  # for which it was made
    ("created", TIME),
    ("source", pa.string()),  # manual, imported, rule, or the name of a label provider
    ("author", pa.string(), True),
    ("text", pa.string()),
    ("rule", pa.string(), True),  # JSON: what the built-in labeller looks for
    ("score", pa.float64(), True),  # F1 on held-out rows
    ("precision", pa.float64(), True),
    ("recall", pa.float64(), True),
    ("rows", pa.int64(), True),  # held-out rows behind the score
    ("fired", pa.int64(), True),  # of them: the feature fired
)
"""Labels as they were given; the latest of a source counts, and an empty text takes it back."""

PROBE: Final = _schema(
    ("stream_key", pa.int32()),
    ("name", pa.string()),
    ("created", TIME),
    ("dictionary_version", pa.int32()),
    ("target", pa.string()),  # JSON: what is predicted
    ("k", pa.int32()),
    ("features", pa.list_(pa.int32())),
    ("weights", pa.list_(pa.float64())),
    ("bias", pa.float64()),
    ("threshold", pa.float64()),  # least logit that is called
    ("chosen_again", pa.list_(pa.float64())),  # of each feature: share of the folds that chose it too
    ("f1", pa.float64(), True),
    ("f1_chance", pa.float64(), True),  # of as many calls made at random
    ("auroc", pa.float64(), True),
    ("auroc_low", pa.float64(), True),
    ("auroc_high", pa.float64(), True),
    ("neuron_auroc", pa.float64(), True),  # of the best single element of the raw rows
    ("units", pa.int64()),  # held-out requests, or rows, behind the scores
    ("requests", pa.int64()),  # that these are of
    ("positives", pa.int64()),
)
"""Sparse linear probes that were asked for."""

REFERENCE: Final = _schema(
    ("stream_key", pa.int32()),
    ("stratum", pa.string()),  # part of the stream that it is of; empty of a stream that is not divided
    ("name", pa.string()),
    ("version", pa.int32()),  # counts the references of the stratum, whatever their names
    ("source", pa.string()),  # next, recent or given
    ("made", TIME),
    ("units", pa.int64()),  # requests in it, those left out by thinning not counted
    ("since", TIME),  # first row of the first of them
    ("until", TIME),  # last row of the last
    ("units_per_second", pa.float64(), True),
    ("autocorrelation_time", pa.float64(), True),  # units for which neighbours resemble each other; 1: not at all
    ("thin", pa.int32()),  # every thin-th unit is looked at
    ("halves_p", pa.float64(), True),  # p-value that its first and second half are alike
)
"""Samples that a stream was compared with, one row when each was taken."""

DETECTION: Final = _schema(
    ("stream_key", pa.int32()),
    ("number", pa.int32()),  # counts the drifts of the stream
    ("stratum", pa.string()),  # part of the stream that drifted; empty of a stream that is not divided
    ("detector", pa.string()),
    ("guarantee", pa.string()),  # run_length, asymptotic or none
    ("time", TIME),  # end of the unit at which the threshold was reached
    ("unit", pa.int64()),  # units watched until then since the reference was taken
    ("statistic", pa.float64()),
    ("threshold", pa.float64()),
    ("run_length", pa.float64()),  # promised mean number of units between false alarms of the detector
    ("reference_name", pa.string()),
    ("reference_version", pa.int32()),
    ("dictionary_version", pa.int32(), True),  # by which features were told; null before there is one
    ("change_time", TIME, True),  # estimate of when the change began
    ("change_low", TIME, True),
    ("change_high", TIME, True),
    ("units_after", pa.int64(), True),  # units after the change that were compared with the reference
    ("shift", pa.float64(), True),  # by how many standard deviations they lie further along the change
    ("changed_features", pa.int32(), True),  # features with q <= 0.1
    ("dictionary_changed", pa.bool_()),  # by the time it was told there was a newer version of the dictionary
    ("telling", pa.int32()),  # 0 when it was found, then counted up; the highest counts
)
"""Drifts, one row when each was found, and one more each time it was told again."""

DETECTION_END: Final = _schema(("stream_key", pa.int32()), ("number", pa.int32()), ("time", TIME))
"""When a drift was over, since no alarm had been raised for a while. Another reference of its stratum ends one, too."""

DETECTION_FEATURE: Final = _schema(
    ("stream_key", pa.int32()),
    ("number", pa.int32()),
    ("rank", pa.int32()),  # 0 changed most
    ("feature", pa.int32()),
    ("feature_id", pa.int64(), True),
    ("rate_before", pa.float64(), True),  # share of the reference's units in which it fired
    ("rate_after", pa.float64(), True),
    ("units_before", pa.int64()),
    ("units_after", pa.int64()),
    ("effect", pa.float64(), True),
    ("p", pa.float64(), True),
    ("q", pa.float64(), True),
    ("telling", pa.int32()),
)
"""The features that changed most in a drift, by each telling of it."""

DETECTION_REQUEST: Final = _schema(
    ("stream_key", pa.int32()),
    ("number", pa.int32()),
    ("rank", pa.int32()),
    ("request_key", pa.int64()),
    ("score", pa.float64()),
    ("telling", pa.int32()),
)
"""The requests that carry a drift, by each telling of it."""

DETECTION_ATTRIBUTE: Final = _schema(
    ("stream_key", pa.int32()),
    ("number", pa.int32()),
    ("attribute", pa.string()),
    ("value", pa.string()),
    ("units_before", pa.int64()),  # with this value
    ("units_after", pa.int64()),
    ("share_before", pa.float64(), True),  # of the units of which the attribute is known
    ("share_after", pa.float64(), True),
    ("share_q", pa.float64(), True),  # that there are as many of them before and after
    ("shift", pa.float64(), True),  # by how many standard deviations they moved along the change
    ("elsewhere", pa.float64(), True),  # and the others
    ("shift_q", pa.float64(), True),  # that these are alike
    ("telling", pa.int32()),
)
"""Attributes of requests in which a drift is concentrated, by each telling of it."""

NOVEL_REQUEST: Final = _schema(
    ("stream_key", pa.int32()),
    ("request_key", pa.int64()),
    ("time", TIME),  # of its last row
    ("p", pa.float64()),  # share of the reference's requests that are as unusual
    ("reference_version", pa.int32()),
)
"""Requests unlike those of the reference."""

TABLES: Final = {
    "stream": STREAM,
    "stream_window": STREAM_WINDOW,
    "feature_window": FEATURE_WINDOW,
    "example": EXAMPLE,
    "request": REQUEST,
    "request_tokens": REQUEST_TOKENS,
    "request_rows": REQUEST_ROWS,
    "outcome": OUTCOME,
    "dictionary": DICTIONARY,
    "feature": FEATURE,
    "feature_match": FEATURE_MATCH,
    "stream_split": STREAM_SPLIT,
    "feature_split": FEATURE_SPLIT,
    "request_feature": REQUEST_FEATURE,
    "label": LABEL,
    "probe": PROBE,
    "reference": REFERENCE,
    "detection": DETECTION,
    "detection_end": DETECTION_END,
    "detection_feature": DETECTION_FEATURE,
    "detection_request": DETECTION_REQUEST,
    "detection_attribute": DETECTION_ATTRIBUTE,
    "novel_request": NOVEL_REQUEST,
}
