"""fedgan: federated GAN training for medical images, attacks on it and defences of it.

>>> import fedgan
>>> summary = fedgan.run("configs/smoke.yaml")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Experiment",
    "UserError",
    "compare",
    "evaluate",
    "evaluate_images",
    "generate",
    "resume",
    "run",
]

if TYPE_CHECKING:
    from fedgan.comparison import compare
    from fedgan.errors import UserError
    from fedgan.experiment import evaluate, evaluate_images, generate, resume, run
    from fedgan.settings import Experiment

_HOMES = {
    "Experiment": "fedgan.settings",
    "UserError": "fedgan.errors",
    "compare": "fedgan.comparison",
    "evaluate": "fedgan.experiment",
    "evaluate_images": "fedgan.experiment",
    "generate": "fedgan.experiment",
    "resume": "fedgan.experiment",
    "run": "fedgan.experiment",
}


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import; `fedgan --help` must not wait for it.
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'fedgan' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
