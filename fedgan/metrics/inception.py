"""Inception v3 of 2015, the network behind the figures called FID, KID and IS."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedgan.components import one_line
from fedgan.errors import UserError
from fedgan.metrics._shared import file_digest, own_randomness
from fedgan.metrics.base import Encoder, in_chunks, to_rgb

CHUNK = 8
"""Images at a time on a CPU: half as quick again as chunks of 50, features the same to 1e-6."""
PATIENCE = 20.0
"""Seconds that the download may be silent before it is given up."""


class Inception(Encoder):
    """Inception v3 (TensorFlow's of 2015) as torch-fidelity has it: the encoder of FID and IS.

    `weights` is a local file in torch-fidelity's layout. Without it the file is looked for in
    torch.hub's folder, and downloaded there by torch-fidelity if it is missing. Features [n, 2048]
    are the pooled last activations; logits [n, 1008] are those without bias, as IS uses them.
    Images are resized to 299 x 299 as TensorFlow 1 does (bilinear, not antialiased).

    Raises `UserError` in `prepare`, before any training, where there are no weights.

    Source: Szegedy et al. (CVPR 2016); Heusel et al., "GANs Trained by a Two Time-Scale Update
    Rule" (NeurIPS 2017); package torch-fidelity.

    >>> Inception(weights="nowhere.pth").prepare(torch.empty(0), torch.empty(0), 2, seed=0)
    Traceback (most recent call last):
    fedgan.errors.UserError: encoder inception: no weights file at nowhere.pth
    """

    name: ClassVar[str] = "inception"

    def __init__(self, weights: str | None = None) -> None:
        self.weights = weights

    def prepare(self, train: Tensor, labels: Tensor, classes: int, seed: int) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = self._weights_file()
        try:
            # torch-fidelity unpickles without weights_only: let nothing but tensors come that far
            torch.load(path, map_location="cpu", weights_only=True)
            with own_randomness(0):  # the layers' initial weights, which are replaced at once
                network = FeatureExtractorInceptionV3(
                    "inception-v3-compat", ["2048", "logits_unbiased"], str(path)
                )
        except Exception as error:  # whatever a broken file makes unpickling raise
            why = one_line(error)[:200]
            raise UserError(
                f"encoder inception: {path} is not Inception's weights ({why})"
            ) from None
        self._network = network.to(memory_format=torch.channels_last)
        self._fingerprint = f"{self.name}-{file_digest(path)}"

    def to(self, device: torch.device) -> None:
        self._network.to(device)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def details(self) -> dict[str, Any]:
        return {"resize": "299 x 299, bilinear as in TensorFlow 1, not antialiased"}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # the resize indexes a plain tensor, not the view that gray images expand to
        chunks = [to_rgb(chunk).contiguous() for chunk in in_chunks(images, CHUNK)]
        features, logits = zip(*map(self._network, chunks), strict=True)
        return torch.cat(features), torch.cat(logits)

    def _weights_file(self) -> Path:
        if self.weights is not None:
            if not Path(self.weights).is_file():
                raise UserError(f"encoder inception: no weights file at {self.weights}")
            return Path(self.weights)
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )

        path = Path(torch.hub.get_dir(), "checkpoints", URL_INCEPTION_V3.rsplit("/", 1)[1])
        if path.is_file():
            return path
        try:
            with own_randomness(0), _impatience():
                FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except Exception as error:  # no network, a proxy's page in place of the file, a full disk
            raise UserError(
                f"encoder inception: {path.name} is not in {path.parent} and its download failed "
                f"({one_line(error)[:200]}); put it there, or name a copy in init_args.weights, or "
                "take the encoder efficientnet-lite0, which needs no download"
            ) from None
        return path


@contextmanager
def _impatience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
