"""Prometheus metrics, made from the backend's figures when they are asked for. What is unknown has no sample."""

from collections.abc import Iterator, Mapping
from typing import Final

from hydrophone_schemas.rest import DriftState, DriftStatus, SelfReport, StreamStatus
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from hydrophoned.api.backend import Backend

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_MAX_NAMES: Final = 64
"""Names of reasons or events per family at most; what goes beyond is summed under ``other``."""

_STREAM_COUNTERS: Final = {
    "rows_received": "Rows that arrived from producers",
    "rows_quarantined": "Rows with NaN or Inf",
    "rows_sink": "Rows beyond the sink threshold",
    "rows_scored": "Rows behind fvu, l0 and the feature statistics",
    "rows_learned": "Rows the dictionary was trained on",
}
_STREAM_GAUGES: Final = {
    "queue_rows": "Rows that wait for the learner",
    "queue_bytes": "Bytes that wait for the learner",
    "lag_seconds": "Seconds from a row's capture to its learning",
    "learner_rows_per_second": "Rows per second through the learner",
    "fvu": "Fraction of variance unexplained, on rows not yet trained on",
    "l0": "Mean active features per scored row",
    "dead_fraction": "Share of features that have not fired for long",
    "features_alive": "Features that are not dead",
    "mean_norm": "Mean norm of scored rows",
    "median_norm": "Running median norm behind the sink threshold",
    "dictionary_version": "Version of the dictionary",
}


def exposition(backend: Backend) -> bytes:
    """The metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_BackendCollector(backend))
    return generate_latest(registry)


class _BackendCollector(Collector):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        backend = self._backend
        yield InfoMetricFamily("hydrophone_build", "The daemon", value={"version": backend.version})
        yield GaugeMetricFamily("hydrophone_ready", "1 when the daemon is ready", value=float(not backend.ready()))
        streams = backend.streams()
        yield from _of_streams(streams)
        yield from _of_drift([backend.drift.status(stream.id) for stream in streams])
        yield from _of_process(backend.self_report())
        events = CounterMetricFamily("hydrophone_events", "Events counted by the daemon", labels=["event"])
        for name, count in _bounded(backend.counters()).items():
            events.add_metric([name], count)
        yield events


def _of_streams(streams: list[StreamStatus]) -> Iterator[Metric]:
    for name, text in _STREAM_COUNTERS.items():
        counter = CounterMetricFamily(f"hydrophone_{name}", text, labels=["stream"])
        _add(counter, streams, name)
        yield counter
    dropped = CounterMetricFamily("hydrophone_rows_dropped", "Rows dropped by reason", labels=["stream", "reason"])
    for stream in streams:
        for reason, count in _bounded(stream.rows_dropped).items():
            dropped.add_metric([stream.id, reason], count)
    yield dropped
    for name, text in _STREAM_GAUGES.items():
        gauge = GaugeMetricFamily(f"hydrophone_{name}", text, labels=["stream"])
        _add(gauge, streams, name)
        yield gauge


def _add(family: CounterMetricFamily | GaugeMetricFamily, streams: list[StreamStatus], name: str) -> None:
    for stream in streams:
        value = getattr(stream, name)
        if value is not None:
            family.add_metric([stream.id], value)


def _of_drift(watches: list[DriftStatus]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "hydrophone_drift_state", "1 of the state that the watch is in", labels=["stream", "state"]
    )
    found = CounterMetricFamily("hydrophone_detections", "Drifts found", labels=["stream"])
    of_stratum = ["stream", "stratum"]
    watched = GaugeMetricFamily("hydrophone_drift_units", "Units watched since the reference", labels=of_stratum)
    of_detector = [*of_stratum, "detector"]
    statistic = GaugeMetricFamily("hydrophone_drift_statistic", "Evidence for a change now", labels=of_detector)
    threshold = GaugeMetricFamily("hydrophone_drift_threshold", "Evidence that raises an alarm", labels=of_detector)
    novel = GaugeMetricFamily(
        "hydrophone_novel_share", "Share of requests unlike those of the reference", labels=["stream"]
    )
    for watch in watches:
        for one in DriftState:
            state.add_metric([watch.stream, one.value], float(watch.state is one))
        if watch.drifts is not None:
            found.add_metric([watch.stream], watch.drifts)
        for stratum in watch.strata:
            names = [watch.stream, stratum.stratum]
            watched.add_metric(names, stratum.watched)
            for detector in stratum.detectors:
                for family, value in ((statistic, detector.statistic), (threshold, detector.threshold)):
                    if value is not None:
                        family.add_metric([*names, detector.name], value)
        if watch.novelty is not None and watch.novelty.share is not None:
            novel.add_metric([watch.stream], watch.novelty.share)
    yield from (state, found, watched, statistic, threshold, novel)


def _of_process(report: SelfReport) -> Iterator[Metric]:
    yield CounterMetricFamily("process_cpu_seconds", "Processor time, user and system", value=report.cpu_seconds)
    yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory", value=report.rss_bytes)
    yield GaugeMetricFamily("process_start_time_seconds", "Start, since 1970", value=report.started.timestamp())
    yield GaugeMetricFamily("process_threads", "Threads", value=report.threads)
    yield GaugeMetricFamily("hydrophone_connections", "Producers connected", value=report.connections)
    store = report.store
    yield GaugeMetricFamily("hydrophone_store_queue_rows", "Table rows waiting to be written", value=store.queue_rows)
    yield GaugeMetricFamily("hydrophone_store_queue_bytes", "Bytes waiting to be written", value=store.queue_bytes)
    yield GaugeMetricFamily("hydrophone_store_lag_seconds", "Age of the oldest waiting", value=store.lag_seconds)
    yield CounterMetricFamily("hydrophone_store_rows_written", "Table rows written", value=store.rows_written)
    lost = CounterMetricFamily("hydrophone_store_rows_lost", "Table rows lost by reason", labels=["reason"])
    for reason, count in _bounded(store.rows_lost).items():
        lost.add_metric([reason], count)
    yield lost
    if store.file_bytes is not None:
        yield GaugeMetricFamily("hydrophone_store_file_bytes", "Size of the database file", value=store.file_bytes)
    busy = CounterMetricFamily("hydrophone_stage_cpu_seconds", "Processor time by stage", labels=["stage"])
    for stage in report.stages:
        if stage.cpu_seconds is not None:
            busy.add_metric([stage.name], stage.cpu_seconds)
    yield busy


def _bounded(counts: Mapping[str, int]) -> dict[str, int]:
    """At most ``_MAX_NAMES`` names, so that no label grows without bound."""
    kept = dict(sorted(counts.items())[:_MAX_NAMES])
    rest = sum(counts.values()) - sum(kept.values())
    if len(counts) > _MAX_NAMES:
        kept["other"] = kept.get("other", 0) + rest
    return kept
