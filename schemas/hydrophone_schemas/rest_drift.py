"""The models of drift and novelty: what a stream is compared with, how near an alarm is, and what was found."""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from hydrophone_schemas.rest_model import Count, RestModel, Time

# -- the watch ----------------------------------------------------------------------------------------------------


class DriftState(StrEnum):
    """How the watch over a stream is."""

    OFF = "off"
    STARTING = "starting"
    COLLECTING = "collecting"
    INSUFFICIENT = "insufficient"
    WATCHING = "watching"
    DRIFTING = "drifting"


class Reference(RestModel):
    """A sample of requests that a stream is, or was, compared with."""

    stratum: str = Field(description="the part of the stream that it is of; empty of a stream that is not divided")
    name: str = Field(description="its name, such as that of a deploy")
    version: Count = Field(description="number of the reference; it counts those of the stratum, whatever their names")
    source: str = Field(
        description="next: the requests that came once it was asked for, or at the start; recent: the latest ones "
        "when it was asked for; given: handed in"
    )
    made: Time = Field(description="when it was taken, by the clock of the rows")
    units: Count = Field(description="requests in it, those left out by thinning not counted")
    since: Time = Field(description="first row of the earliest of them")
    until: Time = Field(description="last row of the latest")
    units_per_second: float | None = Field(
        description="rate at which such units came; null where all are of one moment"
    )
    autocorrelation_time: float | None = Field(
        description="units for which neighbours in time resemble each other; 1: not at all; null where it is not known"
    )
    thin: Count = Field(description="every thin-th request is a unit, here as in the stream; 1: every one")
    halves_p: float | None = Field(
        description="p-value that its first and its second half are alike; a small one says that the stream was "
        "changing while the reference was taken"
    )


class WatchingDetector(RestModel):
    """A detector at work on a stream."""

    name: str = Field(
        description="betting: means and variances of the rows; firing: which features fire; novel_share: how many "
        "requests are novel"
    )
    guarantee: str = Field(
        description="what holds while nothing changes: run_length (at least run_length units between false alarms, on "
        "average, for any number of looks), asymptotic (so for large references), or none"
    )
    statistic: float | None = Field(description="evidence now; an alarm is raised where it reaches threshold")
    threshold: float | None = Field(description="the statistic at which an alarm is raised")
    run_length: float = Field(description="mean number of units between false alarms that is promised")
    seconds: float | None = Field(
        description="run_length at the rate of the reference, in seconds; null where no rate is known"
    )
    share: float = Field(description="of the stream's budget of false alarms")
    units: Count = Field(description="units watched since it was made")
    left_out: Count = Field(description="units that were not finite, and say nothing")
    dictionary_version: Count | None = Field(
        description="version of the dictionary that tells it which features fire; null of one that needs none"
    )


class DriftBudget(RestModel):
    """How many false alarms there may be on a stream, all detectors together."""

    false_alarms: float = Field(description="false alarms in period_seconds")
    period_seconds: float = Field(description="length of the period, in seconds")


class NoveltyStatus(RestModel):
    """How many requests are unlike those of the reference."""

    units: Count = Field(description="requests that were scored since the reference was taken")
    novel: Count = Field(description="of them: novel, those with a p-value of at most p")
    share: float | None = Field(description="novel / units; null while there are none")
    p: float = Field(description="p-value up to which a request counts as novel")
    reference_share: float | None = Field(
        description="the same share of held-out requests of the reference: what is to be expected; null if not known"
    )


class DriftStratum(RestModel):
    """A part of a stream's traffic and its reference; a stream that is not divided has one."""

    stratum: str = Field(
        description="phase of the period and values of attributes, such as phase=2,tenant=acme; empty of a stream that "
        "is not divided; rest: all beyond the first 24"
    )
    state: DriftState = Field(
        description="collecting: requests are gathered for the reference; insufficient: those gathered do not do, "
        "problem says why, and more are waited for; watching"
    )
    problem: str | None = Field(description="why the requests gathered do not do")
    watched: Count = Field(description="units watched since the reference was taken")
    collected: Count = Field(description="requests gathered for a reference; 0 once it is there")
    wanted: Count = Field(description="requests that it takes")
    reference: Reference | None = Field(description="what it is compared with; null while there is none")
    detectors: list[WatchingDetector] = Field(description="one per detector at work")


class DriftStatus(RestModel):
    """The watch over a stream as it stands now. Without one, all but stream, state and problem are null or empty."""

    stream: str = Field(description="id of the stream")
    state: DriftState = Field(
        description="off; starting: the stream's learner is being made; drifting: a drift was found and is not over; "
        "else the state of the stratum that is least far: insufficient, collecting or watching"
    )
    problem: str | None = Field(description="what went wrong while it watched")
    units_per_second: float | None = Field(description="requests of the stream that end in a second; null if not known")
    budget: DriftBudget | None = Field(description="how many false alarms there may be")
    drifts: Count | None = Field(description="drifts found so far")
    drift_since: Time | None = Field(
        description="when the oldest drift was found that is not over; null while there is none"
    )
    strata: list[DriftStratum] = Field(description="one per part of the traffic; empty before the first request ended")
    novelty: NoveltyStatus | None = Field(description="novel requests; null where they are not told")


# -- references ---------------------------------------------------------------------------------------------------


class ReferenceList(RestModel):
    """Samples that a stream was compared with, the latest first."""

    items: list[Reference] = Field(description="one per reference")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")


class RebaselineSource(StrEnum):
    """Where a new reference comes from."""

    NEXT = "next"
    RECENT = "recent"


class RebaselineBody(RestModel):
    """With what a stream is to be compared from now on."""

    name: str = Field(default="default", min_length=1, max_length=100, description="name of the reference")
    source: RebaselineSource = Field(
        default=RebaselineSource.NEXT,
        description="next: the requests that come from now on; recent: the latest ones, at most drift.recent_units",
    )
    units: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="with recent: how many of the latest; by default all that are held",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.units is not None and self.source is RebaselineSource.NEXT:
            raise ValueError("units go with source = recent; of the next requests drift.reference_units are taken")
        return self


# -- drifts -------------------------------------------------------------------------------------------------------


class Detection(RestModel):
    """A drift: from a detector's alarm until none has raised one for a while. It is shown as it was last told."""

    stream: str = Field(description="id of the stream")
    number: Count = Field(description="number of the drift; it counts those of the stream")
    stratum: str = Field(description="the part of the stream that drifted; empty of a stream that is not divided")
    time: Time = Field(description="when it was found: end of the request at which the threshold was reached")
    ended: Time | None = Field(description="when it was over; null while it is not, or not known")
    detector: str = Field(description="the detector that found it")
    guarantee: str = Field(description="what the detector promises: run_length, asymptotic or none")
    unit: Count = Field(description="units watched until then since the reference was taken")
    statistic: float = Field(description="the detector's evidence then")
    threshold: float = Field(description="the threshold that it reached")
    run_length: float = Field(description="mean number of units between false alarms that the detector promises")
    reference_name: str = Field(description="name of the reference")
    reference_version: Count = Field(description="number of the reference")
    dictionary_version: Count | None = Field(
        description="version of the dictionary that features are told by; null if there was none"
    )
    change_time: Time | None = Field(
        description="estimate of when the change began; null where none can be made, or where that was before all "
        "requests that are held"
    )
    change_low: Time | None = Field(
        description="lower end of an interval for it, which holds the true time in 9 of 10 cases or more; null where "
        "that may have been before all requests that are held"
    )
    change_high: Time | None = Field(description="upper end of that interval")
    telling: Count = Field(
        description="how often it had been told before: 0 when it was found; it is told again when 64 and when 256 "
        "requests have come since, and when it is over"
    )
    units_after: Count | None = Field(
        description="units since it began that were compared with the reference: those that what is told here is told "
        "from"
    )
    shift: float | None = Field(
        description="by how many standard deviations these lie further along the change than the reference, on average"
    )
    changed_features: Count | None = Field(description="features with q <= 0.1; null where they were not told")
    dictionary_changed: bool = Field(
        description="whether a newer version of the dictionary had been published by then; that is no cause of the "
        "alarm: reference and stream are encoded by one version"
    )


class DetectionList(RestModel):
    """Drifts of all streams, the latest first."""

    items: list[Detection] = Field(description="one per drift")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")


class DetectedFeature(RestModel):
    """A feature that changed in a drift. A feature fires in a request when it fires on one of its sampled rows."""

    rank: Count = Field(description="place in the order of change, from 0")
    index: Count = Field(description="index of the feature in the version of the dictionary of that time")
    feature_id: int | None = Field(description="its id, which stays with it; null where it is not known")
    index_now: Count | None = Field(description="where it stands now; null if it was lost, or its id is not known")
    label: str | None = Field(description="its best label; null without one")
    label_source: str | None = Field(description="where the label is from")
    rate_before: float | None = Field(description="share of the reference's units in which it fired")
    rate_after: float | None = Field(description="share of the units after the change")
    units_before: Count = Field(description="units of the reference behind rate_before")
    units_after: Count = Field(description="units after the change behind rate_after")
    effect: float | None = Field(
        description="size of the change, Cohen's h: 0.2 is small, 0.8 is large; above 0 where it fires more often"
    )
    p: float | None = Field(description="p-value that the rates are alike, with requests as units")
    q: float | None = Field(
        description="of all features up to this one, the share that may be here by chance; null where not known"
    )


class DetectedRequest(RestModel):
    """A request that carries a drift."""

    rank: Count = Field(description="place in the order of score, from 0")
    request: str | None = Field(description="id of the request; null if it is not known")
    request_key: int = Field(description="its key in the store's tables; -1 where it is not known")
    started: Time | None = Field(description="when it began; null if it is not known")
    score: float = Field(description="how far it lies along the change, in standard deviations of the reference")


class DetectedAttribute(RestModel):
    """Requests with one value of an attribute: whether there are more of them after the change, or they moved more."""

    attribute: str = Field(description="name of the attribute, such as tenant")
    value: str = Field(description="its value")
    units_before: Count = Field(description="requests with this value before the change")
    units_after: Count = Field(description="requests with it after the change")
    share_before: float | None = Field(description="their share of the requests before of which the attribute is known")
    share_after: float | None = Field(description="their share of those after")
    share_q: float | None = Field(
        description="q-value that the shares are alike: a small one says that there are more of them now, or fewer"
    )
    shift: float | None = Field(description="by how many standard deviations these requests moved along the change")
    elsewhere: float | None = Field(description="by how many the others did")
    shift_q: float | None = Field(
        description="q-value that these two are alike: a small one says that the change is in these requests, or in "
        "the others"
    )


class DetectionDetail(RestModel):
    """A drift, and what it is about."""

    detection: Detection = Field(description="the drift")
    features: list[DetectedFeature] = Field(description="features that changed, most first")
    requests: list[DetectedRequest] = Field(description="requests that carry it, most first")
    attributes: list[DetectedAttribute] = Field(
        description="attributes in which it is concentrated, by the smaller of the q-values"
    )


# -- novelty ------------------------------------------------------------------------------------------------------


class NovelRequest(RestModel):
    """A request unlike those of the reference."""

    request: str | None = Field(description="id of the request; null if it is not known")
    request_key: int = Field(description="its key in the store's tables; -1 where it is not known")
    time: Time = Field(description="when it ended")
    p: float = Field(description="its p-value: the share of the reference's requests that are as unusual")
    reference_version: Count = Field(description="number of the reference")


class NoveltyList(RestModel):
    """Novel requests of a stream, the latest first, and how many there are of how many."""

    items: list[NovelRequest] = Field(description="one per novel request")
    next: str | None = Field(default=None, description="cursor of the next page; null on the last")
    units: Count | None = Field(description="requests that were scored since the reference was taken; null: none are")
    novel: Count | None = Field(description="of them: novel")
    share: float | None = Field(description="novel / units; null while there are none")
    p: float | None = Field(description="p-value up to which a request counts as novel")
    reference_share: float | None = Field(
        description="the same share of held-out requests of the reference: what is to be expected; null if not known"
    )


class NoveltyCluster(RestModel):
    """Novel requests that resemble each other."""

    size: Count = Field(description="requests in it")
    requests: list[str | None] = Field(description="ids of some of them, those nearest to its middle first")
    request_keys: list[int] = Field(description="their keys in the store's tables")
    cohesion: float | None = Field(description="how much its requests resemble each other, up to 1")
    first: Time | None = Field(description="when the first of them ended")
    last: Time | None = Field(description="when the last of them ended")


class NoveltyClusterList(RestModel):
    """Groups of the novel requests that are held in memory, the largest first."""

    items: list[NoveltyCluster] = Field(description="one per group")
    next: str | None = Field(default=None, description="always null: there is one page")
