"""Measures: encoders, fidelity (FID, KID, IS on any encoder), and trigger presence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedgan.metrics.base import Encoder
    from fedgan.settings import Component


def find_encoder(key: str, choice: str | Component) -> Encoder:
    """The encoder that a config names; `key` is where it does, for the error ("evaluate.encoder").

    A string is short for `Component(name=...)`. Nothing is loaded or fitted before `prepare`.
    Raises `UserError` for an unknown name, class path or argument.

    >>> find_encoder("evaluate.encoder", "domain").name
    'domain'
    """
    from fedgan import components
    from fedgan.metrics.base import Encoder
    from fedgan.settings import Component

    component = Component(name=choice) if isinstance(choice, str) else choice
    cls = components.find(key, component, __name__, Encoder)  # type: ignore[type-abstract]
    return components.build(key, component, cls)
