"""The settings of a daemon: what each means, its unit, default and bounds. How they are read: :mod:`.config`."""

import fnmatch
import ipaddress
import os
import re
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from hydrophone_schemas.places import DEFAULT_HTTP, parse_address, user_socket
from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hydrophoned.detect.config import WatchConfig
from hydrophoned.learn.config import LearnerConfig, Normalise, Variant
from hydrophoned.runtime.drift_settings import DriftConfig
from hydrophoned.runtime.section import Names, Section

PREFIX: Final = "HYDROPHONE_"
"""What the environment variables of all settings begin with."""
_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_UNIX_PATH_BYTES: Final = 107  # sun_path of the kernel, less its end mark


def read_bytes(value: Any) -> Any:
    """Bytes meant by a text such as ``64MiB``; what is no text passes unchanged.

    >>> read_bytes("64 MiB"), read_bytes("1024"), read_bytes(7)
    (67108864, 1024, 7)
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+) ?([KMGT]iB|B|)", value.strip())
    if found is None:
        raise ValueError("must be a number of bytes, or a text such as 64MiB")
    return int(found[1]) * _UNITS[found[2]]


def _read_mode(value: Any) -> Any:
    """A file mode; text is octal, as in chmod."""
    if not isinstance(value, str):
        return value
    try:
        return int(value, 8)
    except ValueError:
        raise ValueError("must be octal, such as 0660") from None


Positive = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, BeforeValidator(read_bytes)]
Mode = Annotated[int, BeforeValidator(_read_mode), Field(ge=0, le=0o777)]


def data_home() -> Path:
    """The data folder of a daemon that was told none: the service manager's, else the user's own."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "hydrophone/daemon"


def _loopback(address: str | None) -> str | None:
    """``address`` as it is, if it is HOST:PORT on the loopback interface."""
    if address is None:
        return None
    parsed = parse_address(address)
    if parsed.host is None:
        raise ValueError(f"must be HOST:PORT, not the socket path {parsed.path}")
    try:
        local = parsed.host == "localhost" or ipaddress.ip_address(parsed.host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError(
            "is not on the loopback interface, and anyone who reaches the daemon may read all it has learned: "
            "use 127.0.0.1, and an SSH tunnel or a proxy with TLS and authentication before it"
        )
    return address


class DaemonConfig(Section):
    """The process."""

    data_dir: Path = Field(default_factory=data_home, description="folder of the database and the checkpoints")
    threads: int = Field(1, ge=1, le=1024, description="processor threads of the numerics; few, the model comes first")
    nice: int = Field(10, ge=0, le=19, description="niceness of the learners' threads; 19 is the lowest priority")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity that is logged")
    log_format: Literal["text", "json"] = Field("text", description="form of the log on standard error")
    shutdown_timeout_s: float = Field(30.0, gt=0, le=3600, description="longest time a clean stop may take, in seconds")
    parent_fd: int | None = Field(
        None, ge=0, description="file descriptor of a pipe; the daemon ends when the pipe's other end closes"
    )


class IngestConfig(Section):
    """Where producers connect, and how much one of them may ask for."""

    socket: Path | None = Field(
        default_factory=user_socket,
        description="Unix socket for producers; not opened where the service manager passes one",
    )
    socket_mode: Mode = Field(0o600, description="permissions of the socket, octal")
    tcp: str | None = Field(None, description="HOST:PORT on the loopback interface, beside the socket")
    max_frame_bytes: Bytes = Field(64 << 20, ge=1 << 16, le=1 << 30, description="largest frame accepted, in bytes")
    frame_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="time within which a frame that has begun must go on, in seconds"
    )
    max_connections: int = Field(64, ge=1, le=10_000, description="connections open at a time")
    queue_bytes: Bytes = Field(
        64 << 20,
        ge=1 << 16,
        le=1 << 40,
        description="rows that may wait for one stream's learner, in bytes; when full, the newest rows are kept, and a "
        "batch larger than all of it is dropped: the SDK sends up to 8 MiB at a time",
    )
    max_streams: int = Field(256, ge=1, le=100_000, description="streams this daemon learns at most")
    max_requests: int = Field(100_000, ge=1, le=10_000_000, description="requests remembered per producer")

    @field_validator("socket")
    @classmethod
    def _short(cls, path: Path | None) -> Path | None:
        if path is not None and not 0 < len(os.fsencode(path)) <= _UNIX_PATH_BYTES:
            raise ValueError(f"has more than {_UNIX_PATH_BYTES} bytes, a limit of the kernel: use a shorter path")
        return path

    @field_validator("tcp")
    @classmethod
    def _local(cls, address: str | None) -> str | None:
        return _loopback(address)


class HttpConfig(Section):
    """The REST API."""

    address: str | None = Field(
        DEFAULT_HTTP,
        description="HOST:PORT on the loopback interface; port 0 chooses a free one, `none` switches the API off",
    )

    @field_validator("address")
    @classmethod
    def _local(cls, address: str | None) -> str | None:
        return _loopback(address)


class LearnFields(Section):
    """Settings of a learner; every one can be overridden by stream."""

    variant: Variant = Field("topk", description="how the active features of a row are chosen")
    features: int = Field(0, ge=0, le=1 << 20, description="features of a dictionary; 0 means 8 times the row width")
    k: int = Field(32, ge=1, le=4096, description="active features per row")
    batch_rows: int = Field(512, ge=1, le=65_536, description="rows of one training step")
    buffer_rows: int = Field(4096, ge=1, le=1 << 20, description="rows of the shuffle buffer; at least batch_rows")
    warmup_rows: int = Field(
        2048,
        ge=1,
        le=1 << 20,
        description="rows from which a dictionary is initialised; with normalise = whiten 10 per element of a row, "
        "where that is more: the shuffle buffer then has room for them",
    )
    normalise: Normalise = Field(
        "scale",
        description="what makes rows comparable: mean and one scale, or whitening by their own covariance (`whiten`), "
        "or by that of the rows in control_file (`control`)",
    )
    control_file: Path | None = Field(
        None, description="rows that show what is of no interest: .npy, .parquet or .arrow, of the streams' width"
    )
    normaliser_rows: int = Field(8192, ge=1, le=10**12, description="rows between two checks of mean and scale")
    replay_share: float = Field(
        1 / 16, ge=0, le=1, description="rows of the uniform sample that are learned again, per fresh row"
    )
    learn_rows_per_second: float = Field(
        0.0, ge=0, description="most rows learned from per second; the others are scored only; 0 means all"
    )
    learn_time_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="most of the time that passes that training steps may take, as a share; over it rows are scored "
        "only; 0 and 1 mean no limit",
    )
    learning_rate: float = Field(
        5e-3, gt=0, lt=1, description="step size at the start; it falls with the square root of the rows learned"
    )
    sink_norm_factor: float = Field(
        5.0, gt=1, description="rows beyond this multiple of the running median norm are counted apart and not learned"
    )
    dead_after_rows: int = Field(
        0, ge=0, le=10**12, description="rows after which a silent feature counts as dead; 0 means 64 features / k"
    )
    examples_per_feature: int = Field(8, ge=0, le=100, description="top activating rows kept per feature")
    reservoir_rows: int = Field(8192, ge=0, le=1 << 20, description="rows of the uniform sample of raw rows")
    code_sample_rows: int = Field(
        32_768, ge=0, le=1 << 22, description="rows of the uniform sample of codes, behind questions about features"
    )
    split_by: Names = Field(
        (),
        max_length=4,
        description="attributes of requests, such as tenant or route, by which statistics are split besides the phase: "
        "at most 4, each with its first 32 values",
    )
    request_features_per_window: int = Field(
        8, ge=0, le=64, description="requests of a window, about, whose features are kept request by request"
    )
    window_seconds: float = Field(10.0, ge=1, le=3600, description="length of a statistics window, in seconds")
    publish_rows: int = Field(
        262_144,
        ge=1,
        le=10**12,
        description="learned rows between two looks at how far a dictionary has moved since its last version",
    )
    publish_moved: float = Field(
        0.3, ge=0, le=1, description="share of the codes that has to have changed for a new version; 0: none for that"
    )
    probe_rows: int = Field(
        2048, ge=0, le=1 << 16, description="rows of the fixed sample on which versions are compared"
    )
    patience_seconds: float = Field(
        30.0, gt=0, le=86_400, description="on a slow stream: seconds after which fewer rows are enough to learn from"
    )
    seed: int = Field(0, ge=0, le=(1 << 32) - 1, description="seed of everything random in a learner")

    @model_validator(mode="after")
    def _consistent(self) -> "LearnFields":
        if self.features and self.k > self.features:
            raise ValueError(f"k = {self.k} is more than features = {self.features}: a row has no more codes than that")
        if self.normalise == "control" and self.control_file is None:
            raise ValueError("normalise = control needs a control_file: the rows to whiten by")
        if "phase" in self.split_by or len(set(self.split_by)) < len(self.split_by):
            raise ValueError(
                f"split_by = {', '.join(self.split_by)} names an attribute twice, or phase, which is split by anyway"
            )
        if self.batch_rows > self.buffer_rows:
            raise ValueError(
                f"batch_rows = {self.batch_rows} is more than buffer_rows = {self.buffer_rows}, which it is drawn from"
            )
        return self


class LearnOverride(LearnFields):
    """What differs for the streams whose id matches; fields that are not given stay as they are in ``[learn]``."""

    match: str = Field(min_length=1, description="glob over stream ids, such as `smollm2@*/model.layers.15`")

    @model_validator(mode="after")
    def _consistent(self) -> "LearnOverride":
        return self  # what it does not give comes from [learn]; the two together are checked there

    @property
    def given(self) -> dict[str, Any]:
        """The fields that it sets."""
        return self.model_dump(include=self.model_fields_set - {"match"})


class LearnConfig(LearnFields):
    """How dictionaries are learned. Every field but `device` and `idle_seconds` can differ by stream."""

    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N; auto takes a GPU if any"
    )
    idle_seconds: float = Field(
        300.0,
        ge=0,
        le=10**9,
        description="seconds without rows or questions after which a stream leaves the GPU for main memory, until the "
        "next; 0: never",
    )
    override: tuple[LearnOverride, ...] = Field(
        (), description="tables `[[learn.override]]`; of those that match a stream, later ones win"
    )

    @model_validator(mode="after")
    def _overrides_consistent(self) -> "LearnConfig":
        for one in self.override:
            try:
                self.fields(one)
            except ValueError as error:
                raise ValueError(f"override with match = {one.match!r}: {_reason(error)}") from None
        return self

    def fields(self, *overrides: LearnOverride) -> LearnFields:
        """These settings with ``overrides`` applied in their order; raises ValueError if they do not go together."""
        values = self.model_dump(include=set(LearnFields.model_fields))
        for one in overrides:
            values |= one.given
        return LearnFields(**values)


def _reason(error: ValueError) -> str:
    """The text of a validator's error without what pydantic writes around it."""
    found = re.search(r"Value error, (.*?) \[type=", str(error), re.DOTALL)
    return found[1] if found else str(error)


class StoreConfig(Section):
    """The database and the checkpoints."""

    checkpoint_seconds: float = Field(
        60.0, ge=1, le=86_400, description="seconds between checkpoints: what a killed daemon loses at most"
    )
    keep_checkpoints: int = Field(2, ge=1, le=100, description="checkpoints kept per stream")
    keep_versions: int = Field(
        4, ge=1, le=10_000, description="published versions of a dictionary whose weights are kept per stream"
    )
    retention_days: float = Field(30.0, gt=0, le=36_500, description="age at which closed windows are deleted, in days")
    max_bytes: Bytes = Field(
        8 << 30, ge=1 << 20, le=1 << 50, description="size beyond which the oldest windows are deleted, in bytes"
    )


class LabelsConfig(Section):
    """Labels of features. Those that the daemon finds by itself need none of these settings."""

    url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="base address of an OpenAI-compatible endpoint that may be asked for labels, such as "
        "`http://127.0.0.1:8000/v1`",
    )
    model: str | None = Field(None, min_length=1, max_length=200, description="name of the model that is asked there")
    api_key_env: str | None = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="environment variable that holds the endpoint's key"
    )
    text_egress: bool = Field(
        False,
        description="whether token strings may be sent to the endpoint; without it none is asked, on this machine or "
        "elsewhere",
    )
    timeout_s: float = Field(60.0, gt=0, le=600, description="longest time one answer may take, in seconds")
    concurrency: int = Field(2, ge=1, le=32, description="questions that are open at the endpoint at a time")

    @model_validator(mode="after")
    def _complete(self) -> "LabelsConfig":
        if self.url is not None and self.model is None:
            raise ValueError("url is given without model: name the model that is to be asked")
        if self.model in ("manual", "imported", "rule"):
            raise ValueError(f"model = {self.model!r}: a label's source of that name is another one; choose an alias")
        return self


class Config(BaseSettings):
    """All settings of a daemon. :func:`hydrophoned.runtime.config.load_config` reads them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    daemon: DaemonConfig = Field(default_factory=lambda: DaemonConfig.model_validate({}))
    ingest: IngestConfig = Field(default_factory=lambda: IngestConfig.model_validate({}))
    http: HttpConfig = Field(default_factory=lambda: HttpConfig.model_validate({}))
    learn: LearnConfig = Field(default_factory=lambda: LearnConfig.model_validate({}))
    drift: DriftConfig = Field(default_factory=lambda: DriftConfig.model_validate({}))
    store: StoreConfig = Field(default_factory=lambda: StoreConfig.model_validate({}))
    labels: LabelsConfig = Field(default_factory=lambda: LabelsConfig.model_validate({}))

    @property
    def split_by(self) -> set[str]:
        """Attributes of requests by which the statistics of any stream are split."""
        return {name for fields in (self.learn, *self.learn.override) for name in fields.split_by}

    def learn_for(self, stream_id: str) -> LearnFields:
        """Settings of the learner of one stream: ``[learn]`` and the overrides whose glob matches its id."""
        return self.learn.fields(*(one for one in self.learn.override if fnmatch.fnmatchcase(stream_id, one.match)))

    def learner_config(self, stream_id: str) -> LearnerConfig:
        """:meth:`learn_for`, as the learner takes it."""
        values = self.learn_for(stream_id).model_dump()
        return LearnerConfig(**{field.name: values[field.name] for field in dataclass_fields(LearnerConfig)})

    def watch_config(self, stream_id: str) -> WatchConfig | None:
        """Settings of the watch over one stream; None where it is not watched."""
        return self.drift.watch_config(self.learn_for(stream_id).seed)


SECTIONS: Final[dict[str, type[Section]]] = {
    "daemon": DaemonConfig,
    "ingest": IngestConfig,
    "http": HttpConfig,
    "learn": LearnConfig,
    "drift": DriftConfig,
    "store": StoreConfig,
    "labels": LabelsConfig,
}
