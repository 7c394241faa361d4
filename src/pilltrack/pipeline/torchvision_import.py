"""Import torchvision beside a CPU-only torch.

torchvision's wheel registers fake kernels for its compiled operators on import; where the
compiled library cannot load (a CPU-only torch beside the PyPI wheel) that import fails with
`operator torchvision::nms does not exist` (pytorch/vision issue 9085). Declaring the two
operator schemas first lets the import pass. No compiled torchvision operator is used here.
"""

from __future__ import annotations

import sys

import torch

_declared: list[torch.library.Library] = []  # a library lives as long as its object


def ensure_torchvision() -> None:
    """Make `import torchvision` work; timm needs it. Other import errors pass through."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _declared.append(library)
        import torchvision  # noqa: F401
