"""A fingerprint of a model: its architecture and a sample of all its weights."""

import hashlib
from typing import Any, Final

_SAMPLE: Final = 64
"""Elements of each parameter that are hashed, evenly spread."""


def fingerprint(model: Any) -> str:
    """32 hex digits of the modules' classes, the parameters' names, shapes and dtypes, and 64 elements of each.

    ``model`` is a ``torch.nn.Module``. It does not depend on the sites that are captured, so that a model keeps its
    version when another site is added, nor on the device the model is on.
    """
    import torch  # noqa: PLC0415  the SDK itself must import without torch

    digest = hashlib.sha256()
    for path, module in model.named_modules():
        digest.update(f"{path}:{type(module).__qualname__}\n".encode())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            digest.update(f"{name}:{tuple(parameter.shape)}:{parameter.dtype}\n".encode())
            if parameter.numel() and not parameter.is_meta:
                flat = parameter.detach().reshape(-1)
                index = torch.linspace(0, flat.numel() - 1, min(_SAMPLE, flat.numel()), dtype=torch.float64).long()
                digest.update(flat[index.to(flat.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
