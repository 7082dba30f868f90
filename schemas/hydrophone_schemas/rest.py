"""The models of the REST API, shared by the daemon that answers and the client that reads.

Rules that hold for all of them: a value that is unknown is null, never 0; times are UTC and are written in ISO 8601
with ``Z``; unknown fields are refused. A list is a page: ``items``, and ``next``, the cursor of the next page or null.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.functional_validators import AfterValidator

JSON_TYPE: Final = "application/json"
PROBLEM_TYPE: Final = "application/problem+json"
ARROW_TYPE: Final = "application/vnd.apache.arrow.stream"
PROBLEM_URN: Final = "urn:hydrophone:problem:"
"""What every problem's ``type`` begins with; the rest is its name, listed in docs/reference/rest.md."""
NEXT_KEY: Final = b"hydrophone.next"
"""Schema metadata of an Arrow answer that holds the cursor of the next page; absent on the last."""


def _require_utc(time: datetime) -> datetime:
    if time.tzinfo is None:
        raise ValueError("a time needs its zone: end it with Z or an offset such as +02:00")
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time must lie in the years 1 to 9999 in UTC") from None


def format_time(time: datetime) -> str:
    """ISO 8601 in UTC with ``Z``, microseconds where there are any.

    >>> format_time(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2026-01-02T03:04:05Z'
    """
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


Time = Annotated[
    datetime,
    AfterValidator(_require_utc),
    PlainSerializer(format_time, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Count = Annotated[int, Field(ge=0)]
Label = bool | int | Annotated[float, Field(allow_inf_nan=False)] | str | None


class RestModel(BaseModel):
    """What every model of the API has: strict types, no unknown fields, no change after it is made."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, json_schema_serialization_defaults_required=True
    )


class Sort(StrEnum):
    """Columns by which features are sorted."""

    RATE = "rate"
    FIRED = "fired"
    MEAN = "mean"
    STD = "std"
    MAX = "max"
    LAST_FIRED = "last_fired"
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
    """One feature over a range of windows. Values are activations in the dictionary's normalised scale."""

    index: Count = Field(description="index of the feature, 0..F-1")
    fired: Count | None = Field(description="rows on which it was active; null if no row was scored")
    rows: Count = Field(description="rows scored in the range, the base of rate")
    rate: float | None = Field(description="fired / rows; null if no row was scored")
    mean: float | None = Field(description="mean value over the rows on which it fired; null if it did not fire")
    std: float | None = Field(
        description="population standard deviation of the value over the rows on which it fired; null if it did not"
    )
    max: float | None = Field(description="largest value; null if it did not fire")
    last_fired: Time | None = Field(description="end of the last window in which it fired; null if it did not fire")
    dictionary_version: Count | None = Field(
        description="version of the dictionary when it last fired; null if it did not fire"
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


class SeriesPoint(RestModel):
    """One feature in one window, or over the windows of one step."""

    window_start: Time = Field(description="start of the window, inclusive")
    window_end: Time = Field(description="end of the window, exclusive")
    rows: Count = Field(description="rows scored in the window")
    fired: Count | None = Field(
        description="rows on which it was active: 0 where rows were scored and none fired, null where none was scored"
    )
    rate: float | None = Field(description="fired / rows; null if no row was scored")
    mean: float | None = Field(description="mean value over the rows on which it fired; null if it did not fire")
    max: float | None = Field(description="largest value; null if it did not fire")


class Series(RestModel):
    """A feature over time, oldest window first."""

    items: list[SeriesPoint] = Field(description="one per window or step")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")
    since: Time | None = Field(description="windows that start at or after this are covered; null if there are none")
    until: Time | None = Field(description="windows that start before this are covered; null if there are none")


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


# -- codes --------------------------------------------------------------------------------------------------------


class EncodeBody(RestModel):
    """Rows to encode."""

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


class FvuByFeatures(RestModel):
    """What the largest few features of a row explain."""

    features: Count = Field(description="features of each row that are kept, the largest ones")
    fvu: float = Field(description="fraction of variance unexplained by them")


class DictionaryQuality(RestModel):
    """How good a stream's dictionary is, on rows that it was not trained on."""

    dictionary_version: Count = Field(description="version of the dictionary")
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
