"""Units for the novelty benchmark: requests of a language model, a classifier's activations, sentences by topic."""

import json
import os
import platform
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

LAYER, LENGTH, AT_ONCE = 15, 48, 64
CODE, PROSE = 3712, 704
QUICK_CODE, QUICK_PROSE = 1280, 256
OF_TOPIC = 2
STATEMENTS = "HYDROPHONE_BENCH_STATEMENTS"
SINK_FACTOR = 5.0
KNOWN_DIGITS = 8


class Requests(NamedTuple):
    """Rows float16 [n, 48, 576] of n requests, the document of each int32 [n], and whether it is code, bool [n].

    Documents are visited in turn, so that ``place`` int32 [n] is which stretch of its document a request is.
    """

    rows: np.ndarray[Any, Any]
    document: np.ndarray[Any, Any]
    place: np.ndarray[Any, Any]
    code: np.ndarray[Any, Any]

    def kept(self) -> np.ndarray[Any, Any]:
        """Bool [n, 48]: rows that are no sinks."""
        norms = np.stack([np.linalg.norm(one.astype(np.float32), axis=1) for one in self.rows])
        kept: np.ndarray[Any, Any] = norms <= SINK_FACTOR * np.median(norms)
        return kept


def requests(folder: Path, *, quick: bool, say: Any) -> Requests:
    """Stretches of 49 tokens of the reference documentation (prose) and the standard library (code), each by itself.

    The first token's row is left out. Captured once into ``folder``.
    """
    code, prose = (QUICK_CODE, QUICK_PROSE) if quick else (CODE, PROSE)
    name = f"smollm2-requests-py{platform.python_version()}-{code}-{prose}"
    rows_path, table_path = folder / f"{name}-layer{LAYER}.npy", folder / f"{name}-documents.npz"
    if not (rows_path.exists() and table_path.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        say(f"capturing {code + prose} requests of model.layers.{LAYER} into {folder}")
        rows, table = _capture(code, prose)
        np.savez(table_path, **table)
        np.save(rows_path, rows)
    table = np.load(table_path)
    return Requests(np.load(rows_path, mmap_mode="r"), table["document"], table["place"], table["code"])


def _capture(code: int, prose: int) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
    from hydrophone.demo.corpus import builtin_documents

    documents = builtin_documents()
    random.Random(0).shuffle(documents)  # noqa: S311  an order, not a secret
    layer = Layer()
    stretches: dict[str, list[list[tuple[int, int, list[int]]]]] = {"code": [], "prose": []}
    for number, document in enumerate(documents):
        ids = layer.tokens(document.text)
        starts = range(0, len(ids) - LENGTH, LENGTH + 1)
        cut = [(number, place, ids[start : start + LENGTH + 1]) for place, start in enumerate(starts)]
        stretches[document.kind].append(cut)
    chosen = _in_turn(stretches["code"], code) + _in_turn(stretches["prose"], prose)
    rows = np.concatenate(
        [
            layer.rows([ids for _, _, ids in chosen[start : start + AT_ONCE]])[:, 1:].half().numpy()
            for start in range(0, len(chosen), AT_ONCE)
        ]
    )
    table = {
        "document": np.array([number for number, _, _ in chosen], dtype=np.int32),
        "place": np.array([place for _, place, _ in chosen], dtype=np.int32),
        "code": np.array([documents[number].kind == "code" for number, _, _ in chosen]),
    }
    return rows, table


def _in_turn(groups: list[list[Any]], count: int) -> list[Any]:
    most = max(len(group) for group in groups)
    found = [group[place] for place in range(most) for group in groups if place < len(group)]
    if len(found) < count:
        raise SystemExit(f"the text gives only {len(found)} requests of {count}")
    return found[:count]


class Layer:
    """A layer of SmolLM2 and what comes before it."""

    def __init__(self) -> None:
        from hydrophone.demo.model import load_model

        loaded = load_model(None)
        self._body, self._tokenizer = loaded.model.model, loaded.tokenizer
        self._body.layers = self._body.layers[: LAYER + 1]
        self._caught: list[Tensor] = []
        self._body.layers[LAYER].register_forward_hook(self._keep)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._caught.append(output[0] if isinstance(output, tuple) else output)

    def tokens(self, text: str) -> list[int]:
        """Ids of a text's tokens."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def rows(self, ids: list[list[int]]) -> Tensor:
        """[n, length, d] of n sequences of the same length."""
        self._caught.clear()
        with torch.inference_mode():
            self._body(torch.tensor(ids), use_cache=False)
        return self._caught[0].reshape(len(ids), len(ids[0]), -1).float()


# -- digits -----------------------------------------------------------------------------------------------------------


class Digits(NamedTuple):
    """The last hidden layer [n, 64] of a small classifier of the digits 0 to 7, its labels and its head (W, b).

    ``reference`` are images that it was trained on, ``usual`` are others, ``new`` are novel ones by name.
    """

    reference: Tensor
    labels: Tensor
    W: Tensor
    b: Tensor
    usual: Tensor
    new: dict[str, Tensor]


def digits(seeds: range) -> Iterator[Digits]:
    """A classifier for each seed; nothing where scikit-learn, which has the images, is not installed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return
    data = load_digits()
    images, label = torch.from_numpy(data.data / 16).float(), torch.from_numpy(data.target).long()
    for seed in seeds:
        yield _classifier(images, label, seed)


def _classifier(images: Tensor, label: Tensor, seed: int) -> Digits:
    generator = torch.Generator().manual_seed(seed)
    known = (label < KNOWN_DIGITS).nonzero().squeeze(1)
    known = known[torch.randperm(len(known), generator=generator)]
    train, usual = known[: int(0.6 * len(known))], known[int(0.6 * len(known)) :]
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        model = _trained(images[train], label[train], generator)
    hidden = model[:4]
    held = images[usual]
    new = {
        "new_classes": images[label >= KNOWN_DIGITS],
        "noise": held + 0.3 * torch.randn(held.shape, generator=generator),
        "inverted": 1 - held,
        "contrast": 0.4 * held,
    }
    with torch.no_grad():
        head = model[4].weight.detach(), model[4].bias.detach()
        return Digits(
            hidden(images[train]),
            label[train],
            *head,
            hidden(held),
            {name: hidden(x) for name, x in new.items()},
        )


def _trained(x: Tensor, label: Tensor, generator: torch.Generator) -> Any:
    layers = (torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64), torch.nn.ReLU())
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, KNOWN_DIGITS))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
    for _ in range(60):
        for part in torch.randperm(len(x), generator=generator).split(64):
            loss = torch.nn.functional.cross_entropy(model(x[part]), label[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model


# -- sentences --------------------------------------------------------------------------------------------------------


class Sentences(NamedTuple):
    """Mean rows [n, 576] of n sentences, their topics, and what they are about: those of one group go together."""

    unit: Tensor
    topic: np.ndarray[Any, Any]
    group: np.ndarray[Any, Any]


def sentences() -> Sentences | None:
    """Those of the file that ``HYDROPHONE_BENCH_STATEMENTS`` names: lines of JSON with text, topic and group.

    None where it names none.
    """
    path = os.environ.get(STATEMENTS)
    if not path:
        return None
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    layer = Layer()
    ids = [layer.tokens(line["text"]) for line in lines]
    unit = torch.zeros(len(lines), 576)
    lengths = np.array([len(one) for one in ids])
    for length in np.unique(lengths):
        for part in torch.from_numpy(np.flatnonzero(lengths == length)).split(AT_ONCE):
            unit[part] = layer.rows([ids[place] for place in part.tolist()])[:, 1:].mean(1)
    topic, group = (np.array([line[name] for line in lines]) for name in ("topic", "group"))
    return Sentences(unit, topic, group)
