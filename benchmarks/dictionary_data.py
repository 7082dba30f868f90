"""Rows of a real language model for the dictionary benchmark: captured once, cached, split by document, normalised.

The model is SmolLM2-135M-Instruct from its wheel; the text is what every CPython has. ``builtin`` is the demo's text:
the reference documentation as prose and the top level of the standard library as code. ``packages`` are other
documents: the modules of the standard library's packages. Each document is cut into stretches of 128 tokens, which are
taken from all documents in turn until there are enough; none is taken twice.
"""

import platform
import random
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydrophone.demo.corpus import Document, builtin_documents
from hydrophone.demo.model import load_model
from hydrophoned.learn.config import LearnerConfig
from hydrophoned.learn.normaliser import Normaliser
from torch import Tensor

LENGTH = 128
AT_ONCE = 16
SINK_FACTOR = LearnerConfig().sink_norm_factor
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "encodings", "__pycache__", "pydoc_data"}


class Rows(NamedTuple):
    """Rows of one layer, float32. All but ``raw`` are normalised, and without sink rows.

    ``train`` [n, d] is shuffled; ``held_out`` [m, d] is of documents that ``train`` has nothing of. ``raw`` [r, d] are
    the training documents' rows as captured and in the same order, sink rows among them. ``normaliser`` made the
    others from such rows.
    """

    train: Tensor
    held_out: Tensor
    raw: Tensor
    normaliser: Normaliser


def rows(layer: int, *, corpus: str, train: int, held_out: int, folder: Path, say: Callable[[str], None]) -> Rows:
    """Rows of ``model.layers.LAYER`` over ``corpus``: exactly ``train`` and up to ``held_out`` of them."""
    captured = -(-int((train + held_out) * 1.2) // (LENGTH * AT_ONCE)) * LENGTH * AT_ONCE
    found, documents = cached(layer, corpus, captured, folder, say)
    generator = torch.Generator().manual_seed(0)
    count = int(documents.max()) + 1
    apart = torch.zeros(count, dtype=torch.bool)
    apart[torch.randperm(count, generator=generator)[: count // 10]] = True
    is_held_out = apart[torch.from_numpy(documents).long()]
    everything = torch.from_numpy(np.asarray(found)).float()
    norms = everything.norm(dim=1)
    sink = norms > SINK_FACTOR * norms.median()
    usable = torch.randperm(len(everything), generator=generator)
    raw_order = usable[~is_held_out[usable]]
    order = raw_order[~sink[raw_order]][:train]
    apart_order = usable[(is_held_out & ~sink)[usable]][:held_out]
    if len(order) < train:
        raise SystemExit(f"{corpus} has only {len(order)} rows to train on, of {train} asked for")
    normaliser = Normaliser(everything.shape[1], LearnerConfig().normaliser_rows, torch.device("cpu"))
    normaliser.update(everything[order[: normaliser.check_rows]])
    normaliser.freeze()
    last = int((raw_order == order[-1]).nonzero())
    say(
        f"model.layers.{layer} over {corpus}: {train} rows to train on, {len(apart_order)} held out of {count // 10} "
        f"of {count} documents; sinks {int(sink[raw_order[: last + 1]].sum())} of {last + 1} training rows"
    )
    return Rows(
        normaliser.apply(everything[order]),
        normaliser.apply(everything[apart_order]),
        everything[raw_order[: last + 1]],
        normaliser,
    )


def normaliser_of(stream: Tensor) -> Normaliser:
    """What the daemon would normalise a stream with: mean and scale of the rows of its first dictionary."""
    normaliser = Normaliser(stream.shape[1], LearnerConfig().normaliser_rows, torch.device("cpu"))
    normaliser.update(start_of(stream))
    return normaliser


def start_of(stream: Tensor) -> Tensor:
    """The rows that the daemon makes its first dictionary of."""
    return stream[: LearnerConfig().warmup_rows]


def cached(
    layer: int, corpus: str, count: int, folder: Path, say: Callable[[str], None]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows float16 [count, d], memory-mapped, and the number of the document each is of, int32 [count]."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"smollm2-{corpus}-py{platform.python_version()}-{count}"
    rows_path, documents_path = folder / f"{name}-layer{layer}.npy", folder / f"{name}-documents.npy"
    if not rows_path.exists() or not documents_path.exists():
        say(f"capturing {count} rows of model.layers.{layer} over {corpus} into {folder}")
        captured, documents = _capture(layer, corpus, count, say)
        np.save(documents_path, documents)
        np.save(rows_path, captured)
    return np.load(rows_path, mmap_mode="r"), np.load(documents_path)


def _capture(
    layer: int, corpus: str, count: int, say: Callable[[str], None]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    loaded = load_model(None)
    body = loaded.model.model  # without the head; the blocks after the wanted one are not run either
    body.layers = body.layers[: layer + 1]
    caught: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        caught.append(hidden.flatten(0, 1).half())

    handle = body.layers[layer].register_forward_hook(keep)
    stretches = stretches_of(builtin_documents() if corpus == "builtin" else _packages(), loaded.tokenizer)
    documents: list[int] = []
    with torch.inference_mode():
        while len(documents) < count:
            chosen = [stretch for _, stretch in zip(range(AT_ONCE), stretches, strict=False)]
            if len(chosen) < AT_ONCE:
                raise SystemExit(f"the text of {corpus} gives only {len(documents)} rows of {count}")
            body(torch.tensor([ids for _, ids in chosen]), use_cache=False)
            documents += [document for document, _ in chosen for _ in range(LENGTH)]
            if len(caught) % 20 == 0:
                say(f"captured {len(documents)} of {count} rows")
    handle.remove()
    return torch.cat(caught).numpy(), np.array(documents, dtype=np.int32)


def stretches_of(documents: list[Document], tokenizer: Any) -> Iterator[tuple[int, list[int]]]:
    """Stretches of LENGTH token ids with the number of their document: the first of each, the second of each, ..."""
    random.Random(0).shuffle(documents)  # noqa: S311  an order, not a secret
    waiting = [
        (number, tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"])
        for number, document in enumerate(documents)
    ]
    start = 0
    while waiting:
        waiting = [(number, ids) for number, ids in waiting if len(ids) >= start + LENGTH]
        for number, ids in waiting:
            yield number, ids[start : start + LENGTH]
        start += LENGTH


def _packages() -> list[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.glob("*/**/*.py")) if not _LEFT_OUT & set(path.relative_to(root).parts)]
    return [
        Document(str(path.relative_to(root)), "code", path.read_text(encoding="utf-8", errors="replace"))
        for path in files
    ]
