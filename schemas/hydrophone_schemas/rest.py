"""The models of the REST API, shared by the daemon that answers and the client that reads.

Rules that hold for all of them: a value that is unknown is null, never 0; times are UTC and are written in ISO 8601
with ``Z``; unknown fields are refused. A list is a page: ``items``, and ``next``, the cursor of the next page or null.
Those of drift and novelty are in :mod:`.rest_drift`; here all of them are found.
"""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from hydrophone_schemas.rest_drift import (
    DetectedAttribute,
    DetectedFeature,
    DetectedRequest,
    Detection,
    DetectionDetail,
    DetectionList,
    DriftBudget,
    DriftState,
    DriftStatus,
    DriftStratum,
    NovelRequest,
    NoveltyCluster,
    NoveltyClusterList,
    NoveltyList,
    NoveltyStatus,
    RebaselineBody,
    RebaselineSource,
    Reference,
    ReferenceList,
    WatchingDetector,
)
from hydrophone_schemas.rest_model import (
    ARROW_TYPE,
    JSON_TYPE,
    NEXT_KEY,
    PROBLEM_TYPE,
    PROBLEM_URN,
    SINGLE,
    Count,
    RestModel,
    Single,
    Time,
    format_time,
)

Label = bool | int | Annotated[float, Field(allow_inf_nan=False)] | str | None


class Sort(StrEnum):
    """Columns by which features are sorted."""

    RATE = "rate"
    RATE_LOW = "rate_low"
    FIRED = "fired"
    REQUESTS = "requests"
    MEAN = "mean"
    STD = "std"
    MAX = "max"
    LAST_FIRED = "last_fired"
    STABILITY = "stability"
    INDEX = "index"


class Order(StrEnum):
    """Direction of a sort; null values come last in both."""

    ASCENDING = "asc"
    DESCENDING = "desc"


class Format(StrEnum):
    """Forms of an answer that ``format=`` may ask for."""

    JSON = "json"
    ARROW = "arrow"


# -- streams ------------------------------------------------------------------------------------------------------


class ProducerReport(RestModel):
    """What a producer last reported of one stream: its own counts, as seen from inside the model's process."""

    producer: str = Field(description="the producer's id")
    name: str | None = Field(default=None, description="the name the producer gave itself; null if it gave none")
    connected: bool = Field(description="whether the producer is connected now")
    reported: Time | None = Field(default=None, description="when it last reported; null if it never did")
    fires: Count | None = Field(default=None, description="times the hook was called")
    forwards: Count | None = Field(
        default=None,
        description="times the model ran; fewer fires than forwards mean that the hook is being skipped",
    )
    captured: Count | None = Field(default=None, description="rows copied at the hook")
    sampled_out: Count | None = Field(default=None, description="rows left out by sampling")
    padding: Count | None = Field(default=None, description="padding rows, which are never sent")
    sent: Count | None = Field(default=None, description="rows sent")
    acked: Count | None = Field(default=None, description="rows acknowledged by this daemon")
    dropped: dict[str, int] = Field(default_factory=dict, description="rows captured but not sent, by reason")


class StreamStatus(RestModel):
    """One stream as it stands now.

    `rows_received` and `rows_dropped` are since the daemon's last start; what the learner counts goes on from its last
    checkpoint.
    """

    id: str = Field(description="name@version/site")
    stream_key: int = Field(description="the stream's key in the store's tables")
    model: str = Field(description="name of the model")
    version: str = Field(description="version of the model")
    site: str = Field(description="the place in the model whose output is captured")
    width: int = Field(description="row width d, in elements")
    dtype: str = Field(description="dtype of the rows as they are sent: float32, float16 or bfloat16")
    fingerprint: str = Field(description="architecture and weights digest of the captured part")
    created: Time = Field(description="when the stream was first opened")
    features: Count | None = Field(default=None, description="features F of the dictionary; null before there is one")
    k: Count | None = Field(default=None, description="active features per row; null before there is a dictionary")
    dictionary_version: Count | None = Field(
        default=None, description="version of the dictionary; 0 while rows are collected for the first one"
    )
    rows_received: Count = Field(description="rows that arrived from producers")
    rows_dropped: dict[str, int] = Field(description="rows the daemon dropped before learning, by reason")
    rows_quarantined: Count | None = Field(default=None, description="rows with NaN or Inf: not learned, not scored")
    rows_sink: Count | None = Field(
        default=None, description="rows beyond sink_norm_factor times the median norm: not learned, not scored"
    )
    rows_scored: Count | None = Field(default=None, description="rows behind fvu, l0 and the feature statistics")
    rows_learned: Count | None = Field(default=None, description="rows the dictionary was trained on")
    rows_skipped: Count | None = Field(default=None, description="rows scored but over the budget of what is learned")
    rows_replayed: Count | None = Field(default=None, description="rows of the reservoir learned again, so far")
    rows_full: Count | None = Field(
        default=None, description="rows whose code had no room left, where rows have differing numbers of features"
    )
    changes: Count | None = Field(default=None, description="times learning was quickened since fvu had risen for good")
    transforms: Count | None = Field(
        default=None, description="times mean and scale were replaced since the first dictionary, at most 16 counted"
    )
    variant: str | None = Field(default=None, description="how active features are chosen: topk, batchtopk, ...")
    normalise: str | None = Field(
        default=None, description="what makes rows comparable: scale, whiten or control; fvu is of the rows so made"
    )
    learning_rate: float | None = Field(default=None, description="step size in force, in units of a decoder row")
    queue_rows: Count = Field(description="rows that wait for the learner")
    queue_bytes: Count = Field(description="bytes that wait for the learner")
    lag_seconds: float | None = Field(
        default=None, description="seconds from a row's capture to its learning, of the latest rows"
    )
    learner_rows_per_second: float | None = Field(default=None, description="rows per second through the learner")
    fvu: float | None = Field(
        default=None, description="fraction of variance unexplained, on rows not yet trained on, in the open window"
    )
    l0: float | None = Field(default=None, description="mean active features per scored row, in the open window")
    dead_fraction: float | None = Field(default=None, description="share of features that have not fired for long")
    features_alive: Count | None = Field(default=None, description="features that are not dead")
    features_fired: Count | None = Field(default=None, description="features that fired at least once so far")
    features_revived: Count | None = Field(default=None, description="dead features set anew so far")
    mean_norm: float | None = Field(default=None, description="mean Euclidean norm of scored rows, in the open window")
    median_norm: float | None = Field(default=None, description="running median norm behind the sink threshold")
    sink_norm_factor: float | None = Field(
        default=None, description="rows beyond this multiple of the median norm count as sinks"
    )
    producers: list[ProducerReport] = Field(default_factory=list, description="the producers of this stream")


class StreamList(RestModel):
    """Streams, ordered by id."""

    items: list[StreamStatus] = Field(description="one per stream")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")


class Model(RestModel):
    """A model whose activations have been captured: one (name, version)."""

    name: str = Field(description="name of the model")
    version: str = Field(description="version of the model")
    created: Time = Field(description="when its first stream was opened")
    streams: list[str] = Field(description="ids of its streams")
    fingerprints: list[str] = Field(description="distinct fingerprints of its captured parts")


class ModelList(RestModel):
    """Models, ordered by name and version."""

    items: list[Model] = Field(description="one per model and version")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")


class StreamWindow(RestModel):
    """What is known of a stream over one window, or over the windows of one step."""

    window_start: Time = Field(description="start of the window, inclusive")
    window_end: Time = Field(description="end of the window, exclusive")
    rows: Count = Field(description="rows that reached the learner")
    rows_sink: Count = Field(description="of them: norm beyond the sink threshold; neither learned nor scored")
    rows_quarantined: Count = Field(description="of them: NaN or Inf; neither learned nor scored")
    rows_late: Count = Field(description="of them: captured before the window's start")
    rows_scored: Count = Field(description="rows behind fvu, l0 and the feature statistics")
    rows_learned: Count = Field(description="rows trained on")
    requests: Count | None = Field(description="distinct requests; null where several windows are joined")
    fvu: float | None = Field(
        description="fraction of variance unexplained; joined windows are weighted by rows_scored"
    )
    l0: float | None = Field(description="mean active features per scored row")
    dead_fraction: float | None = Field(description="share of dead features, at the last window's close")
    mean_norm: float | None = Field(description="mean Euclidean norm of scored rows")
    median_norm: float | None = Field(description="running median norm, at the last window's close")
    features_fired: Count | None = Field(
        description="features that fired; null before there is a dictionary, and where several windows are joined"
    )
    dictionary_version: Count = Field(description="version of the dictionary, at the last window's close")


class StreamWindowList(RestModel):
    """Closed windows of a stream, oldest first."""

    items: list[StreamWindow] = Field(description="one per window or step")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")
    since: Time | None = Field(description="windows that start at or after this are covered; null if there are none")
    until: Time | None = Field(description="windows that start before this are covered; null if there are none")


# -- features -----------------------------------------------------------------------------------------------------


class Feature(RestModel):
    """One feature over a range of windows. Values are activations in the dictionary's normalised scale.

    With `attribute` and `value` all of it is of the rows of that cell, and what is not kept by cell is null: requests,
    std, max and quantiles.
    """

    index: Count = Field(description="index of the feature, 0..F-1")
    fired: Count | None = Field(description="rows on which it was active; null if no row was scored")
    rows: Count = Field(description="rows scored in the range, the base of rate")
    rate: float | None = Field(description="fired / rows; null if no row was scored")
    rate_low: float | None = Field(
        description="lower end of the rate's 95% interval (Wilson), as of independent rows; null if no row was scored, "
        "or if it fired in one request only"
    )
    rate_high: float | None = Field(description="upper end of that interval")
    requests: Count | None = Field(
        description="requests in which it fired, added up over windows: one that spans two counts in both; null if not "
        "known"
    )
    mean: float | None = Field(description="mean value over the rows on which it fired; null if it did not fire")
    std: float | None = Field(
        description="population standard deviation of the value over the rows on which it fired; null if it did not"
    )
    max: float | None = Field(description="largest value; null if it did not fire")
    q50: float | None = Field(
        description="median of the value over the rows on which it fired, off by at most 1/17 of itself; null if it "
        "fired on fewer than 5 rows or in fewer than 2 requests, or where it lies outside 0.0176 to 960"
    )
    q90: float | None = Field(description="9 in 10 of these values are not larger; as q50")
    q99: float | None = Field(description="99 in 100 of these values are not larger; as q50")
    last_fired: Time | None = Field(description="end of the last window in which it fired; null if it did not fire")
    dictionary_version: Count | None = Field(
        description="version of the dictionary when it last fired; null if it did not fire"
    )
    label: str | None = Field(
        default=None,
        description="its label: the one given by hand, else an imported one, else that with the highest score; null if "
        "it has none",
    )
    label_source: str | None = Field(default=None, description="source of that label")
    label_score: float | None = Field(default=None, description="its score; null if it was not checked")
    stability: str | None = Field(
        default=None,
        description="stable, weak or unstable: whether a twin of the dictionary, learned with another seed from a "
        "sample, has it too; that it lacks it is weak evidence. Null if nobody asked, or too little is known of the "
        "feature that stands here now",
    )
    persisted: Count | None = Field(
        default=None,
        description="published versions in which it has been, the present one too; null if that is not known",
    )


class FeatureList(RestModel):
    """Features of a stream over a range of windows."""

    items: list[Feature] = Field(description="one per feature")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")
    since: Time | None = Field(description="windows that start at or after this are counted; null if there are none")
    until: Time | None = Field(description="windows that start before this are counted; null if there are none")


class FeatureDetail(RestModel):
    """One feature of a stream, with the range of windows that its figures cover."""

    stream: str = Field(description="id of the stream")
    since: Time | None = Field(description="windows that start at or after this are counted; null if there are none")
    until: Time | None = Field(description="windows that start before this are counted; null if there are none")
    feature: Feature = Field(description="its figures")
    feature_id: int | None = Field(
        default=None, description="id of the feature that stands at this index now; null before the first dictionary"
    )
    born_version: Count | None = Field(
        default=None, description="version of the dictionary in which that feature began; windows before are of another"
    )


class FeatureAddress(RestModel):
    """A feature with its id, which stays with it while the dictionary goes on learning, and its index, which is now."""

    stream: str = Field(description="id of the stream")
    feature_id: int = Field(description="the feature's id; never given to another one")
    index: Count | None = Field(description="index at which it stands now; null if it was lost")
    born_version: Count | None = Field(
        description="version of the dictionary in which it began; null if that is no longer known"
    )
    lost_version: Count | None = Field(description="version of the dictionary in which it ended; null while it lives")


class SeriesPoint(RestModel):
    """One feature in one window, or over the windows of one step."""

    window_start: Time = Field(description="start of the window, inclusive")
    window_end: Time = Field(description="end of the window, exclusive")
    rows: Count = Field(description="rows scored in the window")
    fired: Count | None = Field(
        description="rows on which it was active: 0 where rows were scored and none fired, null where none was scored"
    )
    rate: float | None = Field(description="fired / rows; null if no row was scored")
    rate_low: float | None = Field(
        description="lower end of the rate's 95% interval (Wilson), as of independent rows; null if no row was scored, "
        "or if it fired in one request only"
    )
    rate_high: float | None = Field(description="upper end of that interval")
    requests: Count | None = Field(
        description="requests in which it fired, added up over windows: one that spans two counts in both; null if not "
        "known, and with attribute and value"
    )
    mean: float | None = Field(description="mean value over the rows on which it fired; null if it did not fire")
    max: float | None = Field(description="largest value; null if it did not fire, and with attribute and value")
    dictionary_version: Count | None = Field(
        description="version of the dictionary, in the last window of the step; null with attribute and value"
    )
    feature_id: int | None = Field(
        description="id of the feature that stood at the index then: where it changes, the series goes on with another "
        "feature; null if it is not known"
    )


class Series(RestModel):
    """A feature over time, oldest window first."""

    items: list[SeriesPoint] = Field(description="one per window or step")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")
    since: Time | None = Field(description="windows that start at or after this are covered; null if there are none")
    until: Time | None = Field(description="windows that start before this are covered; null if there are none")


class Split(RestModel):
    """A part of a stream's rows for which statistics of features are kept: those with one value of one attribute."""

    attribute: str = Field(description="phase, or the name of an attribute of requests that learn.split_by names")
    value: str = Field(
        description="prompt or decode, or the attribute's value; 'other' stands for all values beyond its first 32"
    )
    rows: Count = Field(description="scored rows with it; those whose request does not have the attribute are in none")
    requests: Count = Field(
        description="requests they came from, added up over windows: one that spans two counts in both"
    )


class SplitList(RestModel):
    """Parts of a stream's rows, by attribute, the largest first."""

    items: list[Split] = Field(description="one per attribute and value")
    next: str | None = Field(default=None, description="always null: the list is short and comes whole")
    since: Time | None = Field(description="windows that start at or after this are counted; null if there are none")
    until: Time | None = Field(description="windows that start before this are counted; null if there are none")


class Example(RestModel):
    """A row that activated a feature most."""

    value: float = Field(description="activation of the feature when the row was seen, normalised scale")
    score: float = Field(description="rank key: log2(value) plus log2(rows seen), so examples follow the dictionary")
    request: str | None = Field(description="id of the row's request; null if it is not known")
    request_key: int = Field(description="the request's key in the store's tables; -1 if it is not known")
    sequence: Count = Field(description="index of the row's sequence within the request's batch")
    position: Count = Field(description="place of the row in its sequence")
    token: int | None = Field(description="token id; null where unknown")
    time: Time = Field(description="when the forward pass began")
    dictionary_version: Count = Field(description="version of the dictionary that saw the row")
    context: list[str | None] | None = Field(
        description="token strings around the row; null where the producer does not send them"
    )
    context_index: Count | None = Field(description="place of the row's own token in context; null without context")


class ExampleList(RestModel):
    """Top activating rows of a feature, best score first."""

    items: list[Example] = Field(description="one per row, at most one per request and sequence")
    next: str | None = Field(default=None, description="always null: the list is short and comes whole")


# -- versions -----------------------------------------------------------------------------------------------------


class Version(RestModel):
    """One published version of a stream's dictionary.

    The counts of features, from `stable` on, say how its features came from those of its parent; they are null without
    one, and where the matches are no longer kept.
    """

    version: Count = Field(description="number of the version")
    published: Time = Field(description="when it was published")
    reason: str = Field(
        description="first, moved (enough since the last one), transform (of mean and scale), requested, or resumed "
        "(from an older checkpoint)"
    )
    parent: Count | None = Field(description="version that its features were matched with; null of the first")
    fingerprint: str = Field(description="fingerprint of the model that it was learned from")
    rows_learned: Count = Field(description="rows learned until then")
    features: Count = Field(description="features F")
    k: Count = Field(description="active features per row")
    variant: str = Field(description="how active features are chosen")
    digest: str | None = Field(description="sha256 of its weights; null if they were never kept")
    kept: bool = Field(description="whether its weights are still kept, and can be had")
    fvu: float | None = Field(description="fraction of variance unexplained of the probe rows")
    decoder_moved: float | None = Field(
        description="mean of 1 - cosine between its decoder rows and the parent's, over living features that were kept"
    )
    codes_moved: float | None = Field(
        description="share of active (row, feature) pairs of the probe rows that are no longer active"
    )
    probe: Count = Field(description="number of the sample of probe rows; it rises when they are drawn anew")
    probe_rows: Count = Field(description="rows of it, behind fvu, codes_moved and the matches' correlations")
    stable: Count | None = Field(default=None, description="features that stayed as they were")
    moved: Count | None = Field(default=None, description="features that are the same, but a little different")
    split: Count | None = Field(default=None, description="features of the parent whose rows several now share")
    merged: Count | None = Field(
        default=None, description="features that now cover the rows of several of the parent's"
    )
    born: Count | None = Field(default=None, description="features that correspond to none of the parent's")
    lost: Count | None = Field(default=None, description="features of the parent that nothing corresponds to")


class VersionList(RestModel):
    """Versions of a stream's dictionary, the latest first."""

    items: list[Version] = Field(description="one per version")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")


class MatchKind(StrEnum):
    """What became of a feature from one version to the next."""

    STABLE = "stable"
    MOVED = "moved"
    SPLIT = "split"
    MERGED = "merged"
    BORN = "born"
    LOST = "lost"


class FeatureMatch(RestModel):
    """A feature of a version's parent, and what it became; a split and a merger have one for each part."""

    kind: str = Field(description="stable, moved, split, merged, born or lost")
    from_id: int | None = Field(description="id of the feature in the parent; null of one that was born")
    to_id: int | None = Field(description="id of the feature in the version; null of one that was lost")
    from_index: Count | None = Field(description="its index in the parent")
    to_index: Count | None = Field(description="its index in the version")
    cosine: float | None = Field(description="cosine of the two decoder rows")
    correlation: float | None = Field(
        description="correlation of their activations on the probe rows; null where neither fires on 10 of them"
    )


class FeatureMatchList(RestModel):
    """How the features of a version came from those of its parent, by index, those that were lost last."""

    items: list[FeatureMatch] = Field(description="one per pair of features, and per feature without one")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")
    from_version: Count | None = Field(description="the parent; null of a version without one")
    to_version: Count = Field(description="the version")


# -- stability ----------------------------------------------------------------------------------------------------


class StabilityRunBody(RestModel):
    """How a twin is learned."""

    passes: int = Field(default=80, ge=1, le=1000, description="times that the twin goes over its rows")
    seconds: float = Field(
        default=120.0, gt=0, le=3600, description="time after which it makes do with what it has learned"
    )
    seed: int = Field(default=1, ge=0, lt=2**31, description="the twin's seed, and that of the choice of requests")


class StabilityState(StrEnum):
    """How far a twin has come."""

    NONE = "none"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class StabilityRun(RestModel):
    """A stream's latest run, or the lack of one. One runs at a time."""

    state: StabilityState = Field(description="none before the first; failed where problem says why")
    stream: str = Field(description="id of the stream")
    started: Time | None = Field(default=None, description="when it began")
    problem: str | None = Field(default=None, description="why it failed")


class StabilityKind(StrEnum):
    """Whether a twin has a feature, too."""

    STABLE = "stable"
    WEAK = "weak"
    UNSTABLE = "unstable"
    UNKNOWN = "unknown"


class FeatureStability(RestModel):
    """Whether a feature lasts: over versions, and in a twin."""

    index: Count = Field(description="index of the feature when it was asked")
    feature_id: int = Field(description="its id, which stays with it")
    status: str = Field(
        description="stable: its correlation is above 0.7; weak: above 0.4; unstable: not so, which is weak evidence, "
        "since a twin learned from few rows lacks much; unknown: it fires on fewer than 20 rows of either half"
    )
    correlation: float | None = Field(
        description="of its values with those of its partner in the twin, on the held-out rows; null where it is "
        "unknown, or has no partner there"
    )
    persisted: Count = Field(
        description="published versions in which it has been, that of the question too; 1 if it is new in that"
    )


class StabilityList(RestModel):
    """What a twin says of a stream's features: the latest answer, stable features first, unknown ones last.

    The twin has the dictionary's settings and another seed, and learns from the rows of half the requests of the
    stream's sample of raw rows, over and over. Each feature's partner there is chosen on the same rows, one to one; all
    figures are of the rows of the other half. The twin has seen far fewer rows than the dictionary: a match says that a
    feature is found again, the absence of one says little. All but state, started and problem are null before the first
    answer.
    """

    items: list[FeatureStability] = Field(description="one per feature; empty before the first answer")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")
    state: str = Field(description="of the latest run: none, running, done or failed; items are of the latest answer")
    started: Time | None = Field(default=None, description="when the latest run began")
    problem: str | None = Field(default=None, description="why the latest run failed")
    time: Time | None = Field(default=None, description="when the answer was found")
    dictionary_version: Count | None = Field(default=None, description="version of the dictionary that was asked about")
    seed: Count | None = Field(default=None, description="the twin's seed")
    passes: Count | None = Field(
        default=None, description="whole passes that the twin made; fewer than asked if time ran out"
    )
    rows: Count | None = Field(default=None, description="rows of the sample")
    requests: Count | None = Field(default=None, description="requests that they are of")
    rows_trained: Count | None = Field(default=None, description="of them: the twin learned from these, in every pass")
    rows_scored: Count | None = Field(default=None, description="of them: held out, what all figures are of")
    features: Count | None = Field(default=None, description="features of the dictionary")
    compared: Count | None = Field(
        default=None, description="features that fire on 20 rows of each half at least; of the others nothing is known"
    )
    pairs: Count | None = Field(default=None, description="of the compared ones: have a partner in the twin")
    strong: float | None = Field(
        default=None, description="share of the compared features with a correlation above 0.7"
    )
    weak: float | None = Field(default=None, description="the same, above 0.4")
    strong_shuffled: float | None = Field(
        default=None,
        description="strong where nothing can be found: the twin's codes are dealt out anew among the rows",
    )
    weak_shuffled: float | None = Field(default=None, description="weak there")
    strong_random: float | None = Field(default=None, description="strong of partners drawn at random")
    weak_random: float | None = Field(default=None, description="weak of partners drawn at random")
    fvu: float | None = Field(
        default=None,
        description="fraction of variance unexplained of the held-out rows by the dictionary, which may have learned "
        "from them",
    )
    fvu_twin: float | None = Field(
        default=None, description="the same by the twin, which has not: how far it is behind"
    )


# -- labels -------------------------------------------------------------------------------------------------------


class FeatureLabel(RestModel):
    """What somebody, or something, says that a feature is.

    `precision`, `recall` and `score` say how well the label's rule predicts where the feature fires, on rows of
    requests that the rule was not made from. They are null where a label has no rule to check, and where it was scored
    elsewhere.
    """

    index: Count | None = Field(description="where the feature is now; null if it no longer exists")
    feature_id: int = Field(description="the feature's id, which stays")
    source: str = Field(description="manual, imported, rule (the built-in labeller), or the name of the model asked")
    text: str = Field(description="the label; empty where it was just taken back")
    author: str | None = Field(description="who gave it; null if that was not said")
    rule: str | None = Field(description="JSON: when the feature fires, checked by machine; null without one")
    score: float | None = Field(description="F1 on held-out rows; null if it was not checked")
    precision: float | None = Field(description="share of the held-out rows it points at on which the feature fires")
    recall: float | None = Field(description="share of the held-out rows on which the feature fires that it points at")
    rows: Count | None = Field(description="held-out rows behind these figures")
    fired: Count | None = Field(description="of them: the feature fired; over rows, what guessing would reach")
    created: Time = Field(description="when it was given")
    dictionary_version: Count = Field(description="version of the dictionary that it was made for")


class LabelList(RestModel):
    """Labels in force, in order of index and source."""

    items: list[FeatureLabel] = Field(description="one per feature and source")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")


class LabelBody(RestModel):
    """A label given by hand."""

    text: str = Field(min_length=1, max_length=500, pattern=r"\S", description="the label")
    author: str | None = Field(default=None, min_length=1, max_length=200, description="who gives it")


class LabelProblem(RestModel):
    """A line of an import that gave no label."""

    line: Count = Field(description="number of the line, or of the entry, from 1")
    message: str = Field(description="what is wrong with it")


class LabelImport(RestModel):
    """What an import did."""

    imported: Count = Field(description="labels taken in")
    skipped: Count = Field(description="lines that gave none")
    problems: list[LabelProblem] = Field(description="the first twenty of them")


class LabelMethod(StrEnum):
    """How labels are found."""

    RULE = "rule"
    MODEL = "model"


class LabelRunBody(RestModel):
    """Which features to label, and how."""

    method: LabelMethod = Field(
        default=LabelMethod.RULE,
        description="rule: what predicts best when the feature fires; model: ask the endpoint of the settings",
    )
    features: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = Field(
        default=None, min_length=1, max_length=65_536, description="their indices; by default the most frequent ones"
    )
    count: int = Field(default=200, ge=1, le=65_536, description="how many of the most frequent ones")
    seconds: float = Field(default=60.0, gt=0, le=3600, description="longest time it may take")


class LabelRunState(StrEnum):
    """How far automatic labelling has come."""

    IDLE = "idle"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


class LabelRun(RestModel):
    """Automatic labelling: the run in progress, or the last one since the daemon's start. One runs at a time."""

    state: LabelRunState = Field(
        description="idle before the first; stopped where time ran out: the labels found until then are kept"
    )
    stream: str | None = Field(default=None, description="id of the stream")
    method: LabelMethod | None = Field(default=None, description="how labels are found")
    started: Time | None = Field(default=None, description="when it began")
    ended: Time | None = Field(default=None, description="when it ended; null while it runs")
    features: Count | None = Field(default=None, description="features to be labelled; null until they are known")
    done: Count = Field(default=0, description="features looked at")
    labelled: Count = Field(default=0, description="of them: a label was found and stored")
    rows: Count | None = Field(default=None, description="rows of the stream's sample that it is made from")
    requests: Count | None = Field(default=None, description="requests among them; half are held out for the scores")
    problem: str | None = Field(default=None, description="why it stopped or failed, or what it went on without")


# -- questions ----------------------------------------------------------------------------------------------------


Index32 = Annotated[int, Field(ge=0, lt=2**31)]
RequestId = Annotated[str, Field(min_length=1, max_length=1000)]
LabelName = Annotated[str, Field(min_length=1, max_length=200)]


class FeatureSearchBody(RestModel):
    """What features are looked for by: exactly one of label, token, piece, text and rows."""

    label: str | None = Field(
        default=None, min_length=1, max_length=500, description="part of a label, whatever its case"
    )
    token: int | None = Field(default=None, ge=0, lt=2**31, description="a token id: features that fire on its rows")
    piece: str | None = Field(
        default=None, min_length=1, max_length=500, description="a token string, exactly, where these are kept"
    )
    text: str | None = Field(
        default=None,
        min_length=1,
        max_length=2000,
        description="text, whatever its case, where token strings are kept: features that fire on its tokens' rows",
    )
    rows: list[list[float]] | None = Field(
        default=None, description="rows x, shape [n, d], in the model's own scale: their strongest features"
    )
    limit: int = Field(default=20, ge=1, le=1000, description="features at most")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [name for name in ("label", "token", "piece", "text", "rows") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of label, token, piece, text and rows; given are {given or 'none'}")
        return self


class FoundFeature(RestModel):
    """A feature that was found.

    Of a token, a piece or a text the figures are of the sample's rows that match; of rows, of the rows given.
    `precision`, `mean` and, but for rows, `score` are null where it fires on fewer than 5 of them or in fewer than 2
    requests.
    """

    index: Count = Field(description="index of the feature")
    score: float | None = Field(
        description="what features are in order of: the label's score; F1 of rate and precision; of rows, the mean "
        "value over all of them"
    )
    rows: Count | None = Field(description="rows that match, the base of rate; null of a label")
    fired: Count | None = Field(description="of them: rows on which it fires; null of a label")
    requests: Count | None = Field(description="requests of these; null of a label and of rows")
    rate: float | None = Field(description="fired / rows; null of a label")
    rate_low: float | None = Field(description="lower end of the rate's 95% interval (Wilson), as of independent rows")
    rate_high: float | None = Field(description="upper end of that interval")
    precision: float | None = Field(description="share of all sampled rows on which it fires that match; null of rows")
    mean: float | None = Field(description="mean value over the matching rows on which it fires")
    label: str | None = Field(default=None, description="its label, or the one that was found; null without")
    label_source: str | None = Field(default=None, description="source of that label")
    label_score: float | None = Field(default=None, description="its score; null if it was not checked")


class FeatureSearch(RestModel):
    """Features that were found, best first."""

    items: list[FoundFeature] = Field(description="one per feature")
    next: str | None = Field(default=None, description="always null: the list is short and comes whole")
    sample_rows: Count | None = Field(description="rows of the sample that was searched; null of a label and of rows")
    dictionary_version: Count = Field(description="version of the dictionary")


class InspectBody(RestModel):
    """What is looked at: exactly one of request, request_key and rows."""

    request: RequestId | None = Field(default=None, description="id of a request; the latest of that id is taken")
    request_key: int | None = Field(default=None, ge=0, lt=2**63, description="key of a request in the store's tables")
    rows: list[list[float]] | None = Field(default=None, description="rows x, shape [n, d], in the model's own scale")
    limit: int = Field(default=50, ge=1, le=10_000, description="features at most")
    places: int = Field(
        default=5, ge=0, le=100, description="places given of each feature, the strongest ones, at most"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [name for name in ("request", "request_key", "rows") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of request, request_key and rows; given are {given or 'none'}")
        return self


class FeaturePlace(RestModel):
    """A row on which a feature fired."""

    sequence: Count = Field(description="index of the row's sequence within the request's batch; of rows given, 0")
    position: Count = Field(description="place of the row in its sequence; of rows given, its place among them")
    value: float = Field(description="activation, normalised scale")
    token: int | None = Field(description="token id; null where unknown")
    piece: str | None = Field(description="token string; null where it is not kept")


class InspectedFeature(RestModel):
    """What a feature does in a request, or in the rows given."""

    index: Count = Field(description="index of the feature")
    fired: Count = Field(description="rows on which it fires")
    rate: float = Field(description="share of the rows on which it fires")
    mean: float = Field(description="mean activation over all of these rows, in whose order features are")
    max: float = Field(description="largest activation")
    usual_rate: float | None = Field(
        description="share of the stream's sampled rows on which it fires; null if these are fewer than 5 or of fewer "
        "than 2 requests"
    )
    places: list[FeaturePlace] = Field(description="where it fires most, as far as rows are kept; strongest first")
    label: str | None = Field(default=None, description="its label; null without")
    label_source: str | None = Field(default=None, description="source of that label")
    label_score: float | None = Field(default=None, description="its score; null if it was not checked")


class Inspection(RestModel):
    """The features of a request, or of rows, strongest first."""

    items: list[InspectedFeature] = Field(description="one per feature that fires")
    next: str | None = Field(default=None, description="always null: the list comes whole")
    request: str | None = Field(description="id of the request; null of rows")
    request_key: int | None = Field(description="its key in the store's tables; null of rows")
    rows: Count = Field(description="rows behind the figures; 0 if nothing is kept of the request")
    complete: bool = Field(
        description="whether these are all scored rows of the request in the windows in which it was sampled, or all "
        "rows given that are finite; else they are what a uniform sample of rows holds of it"
    )
    dictionary_version: Count = Field(description="version of the dictionary")


class NeighbourOrder(StrEnum):
    """What neighbours are nearest by."""

    COSINE = "cosine"
    CORRELATION = "correlation"


class Neighbour(RestModel):
    """A feature near another."""

    index: Count = Field(description="index of the feature")
    cosine: float = Field(description="cosine of the two decoder rows")
    correlation: float | None = Field(
        description="correlation of the two activations over the sampled rows; null where both fire on fewer than 5"
    )
    together: Count = Field(description="sampled rows on which both fire")
    label: str | None = Field(default=None, description="its label; null without")
    label_source: str | None = Field(default=None, description="source of that label")
    label_score: float | None = Field(default=None, description="its score; null if it was not checked")


class NeighbourList(RestModel):
    """Features near one, nearest first."""

    items: list[Neighbour] = Field(description="one per feature")
    next: str | None = Field(default=None, description="always null: the list is short and comes whole")
    rows: Count = Field(description="sampled rows behind correlation and together")
    chance_cosine: float = Field(
        description="what the nearest of as many directions drawn at random would have, at most, in the mean"
    )
    dictionary_version: Count = Field(description="version of the dictionary")


class PartnerOrder(StrEnum):
    """What partners are in order of."""

    COUNT = "count"
    NPMI = "npmi"


class Partner(RestModel):
    """A feature that fires together with another, on a uniform sample of the stream's rows."""

    index: Count = Field(description="index of the partner")
    together: Count = Field(description="sampled rows on which both fire")
    requests: Count = Field(description="requests of these")
    fired: Count = Field(description="sampled rows on which the partner fires")
    rate: float = Field(description="together over the rows on which the feature fires")
    rate_low: float = Field(description="lower end of the rate's 95% interval (Wilson), as of independent rows")
    rate_high: float = Field(description="upper end of that interval")
    npmi: float | None = Field(
        description="normalised pointwise mutual information: 1 only together, 0 as by chance; null for fewer than 5 "
        "rows or 2 requests"
    )
    npmi_low: float | None = Field(description="npmi at rate_low, by which partners are ordered; null as npmi")
    label: str | None = Field(default=None, description="the partner's label; null without")
    label_source: str | None = Field(default=None, description="source of that label")
    label_score: float | None = Field(default=None, description="its score; null if it was not checked")


class PartnerList(RestModel):
    """What fires together with a feature."""

    items: list[Partner] = Field(description="one per partner")
    next: str | None = Field(default=None, description="always null: the list is short and comes whole")
    rows: Count = Field(
        description="rows m of the sample: a share p of all rows is off by sqrt(p (1 - p) / m), rows being independent"
    )
    fired: Count = Field(description="of them: rows on which the feature fires, the base of rate")
    dictionary_version: Count = Field(description="version of the dictionary")


class FiringChoice(StrEnum):
    """Which firings."""

    BAND = "band"
    RANDOM = "random"


class Firing(RestModel):
    """A row on which a feature fired, of a uniform sample of the stream's rows."""

    value: float = Field(description="activation of the feature when the row was seen, normalised scale")
    band: Count = Field(description="quarter of the sampled firings that the value is in, from 1, the weakest, to 4")
    request: str | None = Field(description="id of the row's request; null if it is not known")
    request_key: int = Field(description="the request's key in the store's tables; -1 if it is not known")
    sequence: Count = Field(description="index of the row's sequence within the request's batch")
    position: Count = Field(description="place of the row in its sequence")
    token: int | None = Field(description="token id; null where unknown")
    time: Time = Field(description="when the forward pass began")
    context: list[str | None] | None = Field(
        description="token strings around the row; null where the producer does not send them"
    )
    context_index: Count | None = Field(description="place of the row's own token in context; null without context")


class FiringList(RestModel):
    """Firings of a feature, strong and weak, the strongest first."""

    items: list[Firing] = Field(description="one per row")
    next: str | None = Field(default=None, description="always null: the list is short and comes whole")
    rows: Count = Field(description="rows of the sample")
    fired: Count = Field(description="of them: rows on which the feature fired, from which the items are drawn")
    dictionary_version: Count = Field(description="version of the dictionary")


class TrafficSet(RestModel):
    """Which requests: those for which everything given is so."""

    since: str | None = Field(
        default=None,
        max_length=40,
        description="rows at or after this: ISO 8601 with a zone, or -15m for 15 minutes ago (s, m, h, d)",
    )
    until: str | None = Field(default=None, max_length=40, description="rows before this, in the same form")
    attributes: dict[LabelName, Label] = Field(
        default_factory=dict, max_length=20, description="attributes that the request was given, such as tenant: acme"
    )
    outcomes: dict[LabelName, Label] = Field(
        default_factory=dict,
        max_length=20,
        description="labels of its outcome, the latest told, such as hallucinated: true",
    )
    requests: list[RequestId] | None = Field(
        default=None, min_length=1, max_length=10_000, description="ids of requests"
    )


class Measure(StrEnum):
    """What of a request is looked at."""

    RATE = "rate"
    MEAN = "mean"


class Side(StrEnum):
    """One of two sets."""

    A = "a"
    B = "b"


class ContrastBody(RestModel):
    """Two sets of traffic to compare."""

    a: TrafficSet = Field(description="the first set")
    b: TrafficSet | None = Field(default=None, description="the second; by default all other requests")
    measure: Measure = Field(
        default=Measure.RATE,
        description="of each request: rate, the share of its rows on which a feature fires, or mean, its mean "
        "activation over all of its rows",
    )
    by_length: bool = Field(
        default=True, description="compare requests with requests of about their own length, in rows, only"
    )
    least_requests: int = Field(
        default=5, ge=2, le=10_000, description="requests of both sets in which a feature has to fire to be tested"
    )
    higher_in: Side | None = Field(default=None, description="only features with more in this set; by default both")
    max_q: float | None = Field(default=None, gt=0, le=1, description="only features with at most this q")
    limit: int = Field(default=50, ge=1, le=10_000, description="features at most")


class ContrastedFeature(RestModel):
    """What a feature does in two sets of requests.

    `mean_a` and `mean_b` are null where it fires on fewer than 5 rows or in fewer than 2 requests of that set.
    """

    index: Count = Field(description="index of the feature")
    difference: float = Field(description="rate_a - rate_b")
    difference_low: float | None = Field(
        description="lower end of its 95% interval, of independent requests; null where a set has one request only"
    )
    difference_high: float | None = Field(description="upper end of that interval; null as the lower")
    effect: float = Field(
        description="rank-biserial correlation: how much more often a request of A has the larger measure than one "
        "of B (of about its length), from -1 to 1"
    )
    p: float = Field(description="two-sided p-value of the permutation test with requests as units")
    q: float = Field(
        description="q-value by Benjamini and Yekutieli over the tested features: of those up to q, at most this share "
        "is there by chance, however features go together"
    )
    requests_a: Count = Field(description="requests of A in which it fires")
    requests_b: Count = Field(description="requests of B in which it fires")
    fired_a: Count = Field(description="rows of A on which it fires")
    fired_b: Count = Field(description="rows of B on which it fires")
    rate_a: float = Field(description="share of A's rows on which it fires")
    rate_low_a: float = Field(description="lower end of its 95% interval (Wilson), as of independent rows")
    rate_high_a: float = Field(description="upper end of that interval")
    rate_b: float = Field(description="share of B's rows on which it fires")
    rate_low_b: float = Field(description="lower end of its 95% interval (Wilson), as of independent rows")
    rate_high_b: float = Field(description="upper end of that interval")
    mean_a: float | None = Field(description="mean value over the rows of A on which it fires")
    mean_b: float | None = Field(description="mean value over the rows of B on which it fires")
    label: str | None = Field(default=None, description="its label; null without")
    label_source: str | None = Field(default=None, description="source of that label")
    label_score: float | None = Field(default=None, description="its score; null if it was not checked")


class Contrast(RestModel):
    """Features by how surely they differ between two sets of traffic."""

    items: list[ContrastedFeature] = Field(description="one per feature, lowest p first")
    next: str | None = Field(default=None, description="always null: the list comes whole")
    requests_a: Count = Field(description="requests of A that something is kept of: a sample, see below")
    requests_b: Count = Field(description="the same of B")
    compared_a: Count = Field(description="of A: requests with a match of their length in B, which the test is of")
    compared_b: Count = Field(description="the same of B")
    rows_a: Count = Field(description="scored rows of A behind the rates")
    rows_b: Count = Field(description="scored rows of B behind the rates")
    in_both: Count = Field(description="requests left out because they are in both sets")
    tested: Count = Field(description="features tested, over which q is")
    whole: Count = Field(
        description="requests of both sets of which all scored rows are known, from a sample of each window's "
        "requests; of the others the rows in a uniform sample of the stream's rows are taken"
    )
    sample_low: float | None = Field(
        description="least probability with which a window's requests were sampled; null where none was: a set's rates "
        "weigh windows by it"
    )
    sample_high: float | None = Field(description="largest such probability")
    dictionary_version: Count = Field(description="version of the dictionary")


class RerankBody(RestModel):
    """What to put in order: requests by a stored probe, or features by an outcome."""

    probe: LabelName | None = Field(
        default=None, description="name of a stored probe of requests, to order requests by"
    )
    k: int | None = Field(default=None, ge=1, description="its number of features; by default the one told best")
    requests: list[RequestId] | None = Field(
        default=None, min_length=1, max_length=10_000, description="ids of the requests to order"
    )
    outcomes: dict[LabelName, Label] | None = Field(
        default=None, min_length=1, max_length=20, description="labels of an outcome, to order features by"
    )
    features: list[Index32] | None = Field(
        default=None, min_length=1, max_length=65_536, description="indices of the features to order; by default all"
    )
    limit: int = Field(default=100, ge=1, le=10_000, description="items at most")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        by_probe = self.probe is not None and self.requests is not None
        if by_probe == (self.outcomes is not None):
            raise ValueError("give probe and requests, to order requests, or outcomes, to order features")
        return self


class Reranked(RestModel):
    """A request or a feature in its place."""

    request: str | None = Field(description="id of the request; null of a feature")
    request_key: int | None = Field(description="its key in the store's tables; null of a feature")
    index: Count | None = Field(description="index of the feature; null of a request")
    score: float | None = Field(
        description="of a request: the probe's probability; of a feature: rank-biserial correlation with the outcome, "
        "-1 to 1; null where nothing is kept of it"
    )
    p: float | None = Field(description="of a feature: two-sided p-value of a permutation test, of this feature alone")
    rows: Count | None = Field(description="of a request: rows behind the score")
    requests: Count | None = Field(description="of a feature: requests in which it fires")


class RerankedList(RestModel):
    """Requests or features in order, highest score first, unknown ones last."""

    items: list[Reranked] = Field(description="one per request or feature")
    next: str | None = Field(default=None, description="always null: the list comes whole")
    dictionary_version: Count = Field(description="version of the dictionary")


class GivenCode(RestModel):
    """A code to rebuild a row from."""

    index: list[Index32] = Field(max_length=65_536, description="feature indices, none twice")
    value: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        max_length=65_536, description="their values, normalised scale"
    )


class DecodeBody(RestModel):
    """Codes to decode."""

    codes: list[GivenCode] = Field(description="one per row")


class DecodedRow(RestModel):
    """A row rebuilt from a code."""

    row: list[Single | None] = Field(
        description="the row, in the model's own scale (JSON has no NaN and Inf: these are null there)"
    )


class DecodedList(RestModel):
    """Rows rebuilt from the given codes, in their order."""

    items: list[DecodedRow] = Field(description="one per code")
    next: str | None = Field(default=None, description="always null: rows come whole")
    dictionary_version: Count = Field(description="version of the dictionary that rebuilt them")


class ProbeBody(RestModel):
    """What a probe is to tell: exactly one of outcomes, tokens and pieces."""

    name: LabelName = Field(description="name to store it under; the latest of a name counts")
    outcomes: dict[LabelName, Label] | None = Field(
        default=None,
        min_length=1,
        max_length=20,
        description="labels of requests' outcomes: requests with all of them are told from the other requests that "
        "have an outcome with these labels",
    )
    tokens: list[Index32] | None = Field(
        default=None, min_length=1, max_length=1000, description="token ids: their rows are told from all other rows"
    )
    pieces: list[Annotated[str, Field(min_length=1, max_length=500)]] | None = Field(
        default=None, min_length=1, max_length=1000, description="token strings, exactly, where these are kept"
    )
    measure: Measure = Field(default=Measure.MEAN, description="of requests: what of each is looked at")
    sizes: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        default=[1, 2, 4, 8, 16], min_length=1, max_length=8, description="numbers of features k"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [name for name in ("outcomes", "tokens", "pieces") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of outcomes, tokens and pieces; given are {given or 'none'}")
        return self


class Probe(RestModel):
    """The k features that tell a label best, and how well they tell it of requests that were held out.

    The logit of a unit is `bias` plus the sum of `weights` times its values at `features`; it is called where that is
    at least `threshold`.
    """

    name: str = Field(description="its name")
    created: Time = Field(description="when it was made")
    dictionary_version: Count = Field(description="version of the dictionary")
    target: str = Field(description="JSON: what it tells, and of what")
    k: Count = Field(description="features that it may use")
    features: list[int] = Field(description="their indices, in the order in which they were chosen")
    weights: list[float] = Field(description="of each, in the scale of its values")
    bias: float = Field(description="logit where none fires")
    threshold: float = Field(description="least logit that is called, best by F1 where it was fitted")
    chosen_again: list[float] = Field(description="of each, share of the folds that chose it too")
    f1: float | None = Field(description="F1 on units held out, over all folds")
    f1_chance: float | None = Field(description="F1 of as many calls made at random")
    f1_always: float | None = Field(description="F1 of calling every unit")
    auroc: float | None = Field(description="area under the ROC curve on units held out, within folds")
    auroc_low: float | None = Field(description="lower end of its 95% interval, of independent requests")
    auroc_high: float | None = Field(description="upper end of that interval")
    neuron_auroc: float | None = Field(
        description="the same of the best single element of the raw rows, chosen and scored alike; null of requests"
    )
    units: Count = Field(description="requests, or rows, behind the figures")
    requests: Count = Field(description="requests that these are of")
    positives: Count = Field(description="units with the label")


class ProbeList(RestModel):
    """Stored probes, the latest of each name and k, by name and k."""

    items: list[Probe] = Field(description="one per name and k")
    next: str | None = Field(default=None, description="always null: the list comes whole")


# -- codes --------------------------------------------------------------------------------------------------------


class RowsBody(RestModel):
    """Rows to encode, or to rebuild."""

    rows: list[list[float]] = Field(description="rows x, shape [n, d], in the model's own scale")


class Code(RestModel):
    """The code of one row."""

    index: list[int] | None = Field(
        description="k feature indices, largest value first; null if the row has NaN or Inf"
    )
    value: list[float] | None = Field(description="their values, normalised scale; null if the row has NaN or Inf")
    sink: bool = Field(description="true if the norm is beyond the stream's sink threshold: its code means little")
    finite: bool = Field(description="false if the row has NaN or Inf somewhere")


class CodeList(RestModel):
    """Codes of the given rows, in their order."""

    items: list[Code] = Field(description="one per row")
    next: str | None = Field(default=None, description="always null: codes come whole")
    dictionary_version: Count = Field(description="version of the dictionary that encoded them")


class Reconstruction(RestModel):
    """One row as its code rebuilds it."""

    row: list[Single | None] = Field(
        description="the row rebuilt, in the model's own scale; a sink, and a row that is not finite, as it was given "
        "(JSON has no NaN and Inf: these are null there)"
    )
    sink: bool = Field(description="true if the norm is beyond the stream's sink threshold")
    finite: bool = Field(description="false if the row has NaN or Inf somewhere")


class ReconstructionList(RestModel):
    """The given rows, rebuilt, in their order."""

    items: list[Reconstruction] = Field(description="one per row")
    next: str | None = Field(default=None, description="always null: rows come whole")
    dictionary_version: Count = Field(description="version of the dictionary that rebuilt them")


class FvuByFeatures(RestModel):
    """What the largest few features of a row explain."""

    features: Count = Field(description="features of each row that are kept, the largest ones")
    fvu: float = Field(description="fraction of variance unexplained by them")


class DictionaryQuality(RestModel):
    """How good a stream's dictionary is, on rows that it was not trained on."""

    dictionary_version: Count = Field(description="version of the dictionary")
    digest: str | None = Field(
        default=None, description="sha256 of the weights of that version, as they were published"
    )
    time: Time | None = Field(default=None, description="when the latest of the assessed rows was captured")
    rows: Count = Field(description="rows behind l0 and fvu_by_features: the first of a window")
    l0: float | None = Field(default=None, description="mean active features of these rows")
    fvu_by_features: list[FvuByFeatures] | None = Field(
        default=None, description="fvu with fewer features per row, up to all; null where there is nothing to explain"
    )
    density: list[Count] | None = Field(
        default=None,
        description="numbers of features by the share of scored rows on which they fired: never, below the first edge, "
        "between the edges, at least the last",
    )
    density_edges: list[float] = Field(description="edges of the shares")
    density_rows: Count = Field(description="scored rows behind the density")


# -- requests -----------------------------------------------------------------------------------------------------


class RequestStreamRows(RestModel):
    """Rows of a request received for one stream."""

    stream: str | None = Field(description="id of the stream; null if it is not known")
    rows: Count = Field(description="rows received, in closed windows")
    rows_prompt: Count = Field(description="of them: computed while the prompt was read")
    rows_decode: Count = Field(description="of them: computed while the answer was written")


class TokenRun(RestModel):
    """Token strings of one sequence from one position on."""

    sequence: Count = Field(description="index of the sequence within the request's batch")
    position: Count = Field(description="position of the first piece")
    pieces: list[str | None] = Field(description="token strings; null where a token has none")


class Outcome(RestModel):
    """What the user told of a request."""

    request: str = Field(description="id of the request")
    model: str = Field(description="name of the model that served it")
    time: Time = Field(description="when the outcome was established")
    received: Time = Field(description="when the daemon was told")
    source: str = Field(description="who or what established it")
    labels: dict[str, Label] = Field(description="labels, such as hallucinated: true")


class Request(RestModel):
    """One inference call as it was announced by its producer."""

    request_key: int = Field(description="the request's key in the store's tables")
    id: str = Field(description="the id that the user gave it, or that was made up for it")
    model: str = Field(description="name of the model")
    version: str = Field(description="version of the model")
    producer: str = Field(description="id of the producer")
    started: Time = Field(description="when it began")
    sample: float = Field(description="probability with which it was taken")
    attributes: dict[str, Label] = Field(description="attributes that the user gave it")
    rows: list[RequestStreamRows] = Field(description="rows received, by stream")
    tokens: list[TokenRun] | None = Field(description="token strings; null where the producer does not send them")


class RequestDetail(RestModel):
    """All requests that carry one id (an id is the user's own and may be used again), and their outcomes."""

    id: str = Field(description="the id asked for")
    requests: list[Request] = Field(description="latest first, at most 100")
    outcomes: list[Outcome] = Field(description="latest first, at most 100")


class OutcomeBody(RestModel):
    """What to record of a request."""

    labels: dict[Annotated[str, Field(min_length=1, max_length=200)], Label] = Field(
        min_length=1, max_length=100, description="labels, such as hallucinated: true"
    )
    source: str = Field(default="rest", min_length=1, max_length=200, description="who or what established it")
    time: Time | None = Field(default=None, description="when it was established; now if not given")
    model: str | None = Field(
        default=None,
        max_length=100,
        description="name of the model; needed where the request is not yet stored or its id is used by several models",
    )


# -- the daemon itself --------------------------------------------------------------------------------------------


class Stage(RestModel):
    """One stage of a row's way through the daemon, such as ``ingest`` or ``learn smollm2@1/model.layers.15``."""

    name: str = Field(description="name of the stage")
    cpu_seconds: float | None = Field(default=None, description="processor time spent; null where it is not measured")
    queue_rows: Count | None = Field(default=None, description="rows waiting before it")
    queue_bytes: Count | None = Field(default=None, description="bytes waiting before it")
    queue_capacity_bytes: Count | None = Field(default=None, description="most bytes that may wait before it")
    rows: Count | None = Field(default=None, description="rows it has taken in")
    dropped: dict[str, int] = Field(default_factory=dict, description="rows it dropped, by reason")
    lag_seconds: float | None = Field(default=None, description="how far it is behind, in seconds")


class StoreReport(RestModel):
    """The store's writer."""

    queue_bytes: Count = Field(description="bytes waiting to be written")
    queue_rows: Count = Field(description="table rows waiting to be written")
    rows_written: Count = Field(description="table rows written since the start")
    rows_lost: dict[str, int] = Field(description="table rows lost since the start, by reason")
    lag_seconds: float = Field(description="age of the oldest table waiting, in seconds; 0 when none waits")
    last_write_seconds: float | None = Field(
        default=None, description="time the last transaction took; null before one"
    )
    file_bytes: Count | None = Field(default=None, description="size of the database file and its log")
    problem: str | None = Field(default=None, description="what keeps the writer from writing; null if nothing does")


class SelfReport(RestModel):
    """The daemon's own processor time, memory, lags and drops, stage by stage."""

    version: str = Field(description="version of the daemon")
    pid: int = Field(description="process id")
    started: Time = Field(description="when it started")
    time: Time = Field(description="when this report was made")
    cpu_seconds: float = Field(description="processor time of the process, user and system")
    rss_bytes: Count = Field(description="resident memory")
    threads: Count = Field(description="threads of the process")
    connections: Count = Field(description="producers connected now")
    stages: list[Stage] = Field(description="in the order in which a row passes them")
    store: StoreReport = Field(description="the store's writer")
    last_checkpoint: Time | None = Field(default=None, description="when the last checkpoint was completed")
    counters: dict[str, int] = Field(description="events counted since the start, by name")


class Liveness(RestModel):
    """The process answers."""

    status: str = Field(description="always ok")


class Readiness(RestModel):
    """Whether the daemon takes rows and answers queries."""

    ready: bool = Field(description="true when nothing stands in the way")
    reasons: list[str] = Field(description="what stands in the way; empty when ready")


class Index(RestModel):
    """Where to go from here."""

    name: str = Field(description="always hydrophone")
    version: str = Field(description="version of the daemon")
    links: dict[str, str] = Field(description="paths of the API by name")


# -- problems -----------------------------------------------------------------------------------------------------


class FieldProblem(RestModel):
    """One thing wrong with a parameter or a field of the body."""

    location: str = Field(description="query, path, header or body")
    name: str = Field(description="name of the parameter, or dotted path of the field")
    message: str = Field(description="what is wrong and what to do")


class Problem(RestModel):
    """An error, as RFC 9457 has it; sent as application/problem+json."""

    type: str = Field(description="urn:hydrophone:problem: and the problem's name")
    title: str = Field(description="the kind of problem in a few words")
    status: int = Field(description="HTTP status code")
    detail: str = Field(description="what was wrong this time, with which value, and what to do")
    instance: str = Field(description="path of the request")
    errors: list[FieldProblem] = Field(default_factory=list, description="each parameter or field that was wrong")
    id: str | None = Field(default=None, description="id under which the daemon logged an internal error; else null")
