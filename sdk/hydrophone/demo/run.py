"""The demo itself: daemon up, model loaded, text through it, features learned, figures shown, features told."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from rich.console import Console

import hydrophone
from hydrophone.demo.corpus import builtin_documents, read_documents, turning
from hydrophone.demo.daemon import DemoDaemon
from hydrophone.demo.drift import FoundDrift, found_drifts, print_drifts
from hydrophone.demo.errors import DemoError
from hydrophone.demo.figures import Figures, Meter, shown
from hydrophone.demo.model import LoadedModel, default_site, load_model
from hydrophone.demo.telling import Telling, most_telling, print_telling
from hydrophone.demo.view import View, make_view
from hydrophone.errors import HydrophoneError
from hydrophone.tap import Tap

_CHUNK_TOKENS: Final = 64
_TURN: Final = 2 / 3
_REFERENCE: Final = 0.6  # of the requests before the text turns, at most
_MOST_REFERENCE: Final = 400
_LEAST_REFERENCE: Final = 64
_READ_SECONDS: Final = 0.5
_FLUSH_SECONDS: Final = 120.0
_IDLE_SECONDS: Final = 2.0  # after which the last requests have ended, and what they raise is told
_CANDIDATES: Final = 400
_HOLDOUT_ROWS: Final = 8192


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for on the command line."""

    tokens: int = 60_000
    """Tokens to run through the model."""
    site: str | None = None
    features: int = 4608
    """Features of the dictionary."""
    k: int = 32
    """Active features per row."""
    model: str | None = None
    text: tuple[Path, ...] = ()
    once: bool = False
    """Exit at the end instead of serving on."""
    report: Path | None = None
    data_dir: Path | None = None
    http: str = "127.0.0.1:8417"
    seed: int = 0
    show: int = 12
    """Features to print at the end."""


class Turn(NamedTuple):
    """The text turned from the kind ``before`` to ``kind`` at ``request``, counted from the first; None: it did not."""

    before: str
    kind: str
    request: int | None


class Outcome(NamedTuple):
    """What a demo came to: the last reading, the course of fvu, the features told, and the stream they are of."""

    figures: Figures
    fvus: list[float]
    telling: list[Telling]
    stream: str


def run_demo(options: Options, console: Console) -> Outcome:
    """Run the demo to its end; raises DemoError where it cannot go on."""
    documents = read_documents(list(options.text)) if options.text else builtin_documents()
    started = time.monotonic()
    with make_view(console) as view:
        view.say("starting the daemon and loading the model (about 20 s) ...")
        turn = int(options.tokens * _TURN)
        reference = int(min(_MOST_REFERENCE, max(_LEAST_REFERENCE, _REFERENCE * turn / _CHUNK_TOKENS)))
        with DemoDaemon(
            features=options.features,
            k=options.k,
            data_dir=options.data_dir,
            http=options.http,
            reference_units=reference,
        ) as daemon:
            loaded = load_model(options.model)
            site = options.site or default_site(loaded.model)
            view.say(f"{loaded.name} is loaded; listening at {site}; API at {daemon.url}")
            with hydrophone.attach(
                loaded.model,
                sites=[site],
                name=loaded.name,
                daemon=daemon.address,
                text="text",
                tokenizer=loaded.tokenizer,
            ) as tap:
                stream_id = tap.streams[0]
                text = turning(documents, loaded.tokenizer, _CHUNK_TOKENS, options.seed, turn)
                figures, fvus, turned = _listen(loaded, tap, daemon, view, options, text)
                view.say("waiting for the last requests to end ...")
                time.sleep(_IDLE_SECONDS)
                report = _report(figures, daemon, stream_id)
                drifts = found_drifts(daemon, stream_id)
                report["turn"] = turned._asdict()
                report["drifts"] = [one._asdict() for one in drifts]
                report["total_seconds"] = time.monotonic() - started
                if options.report is not None:
                    options.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            telling = _conclude(console, daemon, stream_id, report, options, drifts)
            if not options.once:
                console.print("\nserving until Ctrl-C ...")
                _serve_on()
            return Outcome(figures, fvus, telling, stream_id)


def _listen(
    loaded: LoadedModel, tap: Tap, daemon: DemoDaemon, view: View, options: Options, text: Iterator[Any]
) -> tuple[Figures, list[float], Turn]:
    """Run the model over the text and show figures meanwhile.

    The figures after all is learned, fvu's course, and where the text turned.
    """
    import torch  # noqa: PLC0415  the demo's own extra

    meter, stream_id, tokens = Meter(), tap.streams[0], 0
    ended = threading.Event()

    def stream_status() -> dict[str, Any] | None:
        return next((one for one in daemon.streams() if one["id"] == stream_id), None)

    def watch() -> None:
        while not ended.wait(_READ_SECONDS):
            try:
                stream = stream_status()
            except HydrophoneError as error:
                view.say(f"no figures from the daemon: {error}")
                continue
            view.show(meter.read(tokens, tap.status(), stream), meter.fvus, options.tokens, stream_id)

    watcher = threading.Thread(target=watch, name="demo view", daemon=True)
    watcher.start()
    began, requests = time.monotonic(), 0
    kinds: dict[str, int] = {}
    try:
        with torch.inference_mode():
            while tokens < options.tokens:
                chunk = next(text)
                kinds.setdefault(chunk.kind, requests)
                requests += 1
                ids = torch.tensor([chunk.token_ids[: options.tokens - tokens]])
                with tap.request(document=chunk.document, kind=chunk.kind):
                    loaded.model(ids, logits_to_keep=1)
                tokens += ids.numel()
        model_seconds = time.monotonic() - began
        if not tap.flush(_FLUSH_SECONDS):
            raise DemoError(f"the daemon did not finish learning within {_FLUSH_SECONDS:.0f} s")
    finally:
        ended.set()
        watcher.join()
    figures = meter.read(tokens, tap.status(), stream_status())
    figures.model_tokens_per_s = tokens / model_seconds
    view.show(figures, meter.fvus, options.tokens, stream_id)
    return figures, list(meter.fvus), _turn(kinds)


def _turn(first: dict[str, int]) -> Turn:
    """From the first request of each kind, in order."""
    before, *others = first
    return Turn(before, others[0], first[others[0]]) if others else Turn(before, before, None)


def _report(figures: Figures, daemon: DemoDaemon, stream_id: str) -> dict[str, Any]:
    """Final figures; ``fvu_holdout`` is over the last rows, each scored before it was trained on."""
    windows = daemon.get(f"/v1/streams/{stream_id}/windows", limit=1000)["items"]
    windows = [window for window in windows if window["fvu"] is not None]
    windows.sort(key=lambda window: window["window_start"])
    rows, error = 0, 0.0
    for window in reversed(windows):
        if rows >= _HOLDOUT_ROWS:
            break
        rows += window["rows_scored"]
        error += window["rows_scored"] * window["fvu"]
    names = ("tokens", "rows_sent", "rows_received", "rows_dropped", "rows_learned", "l0", "dead_fraction")
    values = asdict(figures)
    return {
        **{name: values[name] for name in (*names, "features_fired", "seconds", "model_tokens_per_s")},
        "fvu_holdout": error / rows if rows else None,
        "fvu_holdout_rows": rows,
        "fvu_by_window": [{"rows": window["rows_scored"], "fvu": window["fvu"]} for window in windows],
        "stream": stream_id,
    }


def _conclude(
    console: Console,
    daemon: DemoDaemon,
    stream_id: str,
    report: dict[str, Any],
    options: Options,
    drifts: list[FoundDrift],
) -> list[Telling]:
    base = f"/v1/streams/{stream_id}/features"
    features = daemon.get(base, sort="rate", order="desc", limit=_CANDIDATES)["items"]
    with_examples = ((one, daemon.get(f"{base}/{one['index']}/examples")["items"]) for one in features)
    telling = most_telling(with_examples, options.show)
    if telling:
        console.print(f"\n[bold]{len(telling)} telling features[/] of {report['features_fired']:,} that fired")
        print_telling(console, telling)
    console.print(
        f"\n{report['tokens']:,} tokens in {report['seconds']:.0f} s ({report['model_tokens_per_s']:.0f} tokens/s); "
        f"rows sent {report['rows_sent']:,}, received {report['rows_received']:,}, dropped {report['rows_dropped']:,}, "
        f"learned {report['rows_learned']:,}\n"
        f"fvu {shown(report['fvu_holdout'], '.3f')} on the last {report['fvu_holdout_rows']:,} rows, none trained on "
        f"before; l0 {shown(report['l0'], '.1f')}; dead fraction {shown(report['dead_fraction'], '.2%')}",
        highlight=False,
    )
    chosen = telling[0].feature if telling else 0
    print_drifts(console, drifts, **report["turn"])
    console.print(f"\nAPI: {daemon.url}   (OpenAPI: {daemon.url}/openapi.json)\ntry next:", highlight=False)
    for command in (
        f"hydrophone features '{stream_id}' --url {daemon.url}",
        f"hydrophone feature '{stream_id}' {chosen} --url {daemon.url}",
        f"hydrophone drift '{stream_id}' --url {daemon.url}",
        f"curl '{daemon.url}/v1/streams/{quote(stream_id, safe='@')}/features?sort=max&limit=5'",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)
    return telling


def _serve_on() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return
