"""The one place where bytes become model input and back.

Images rest as uint8 [N, C, H, W]; a model sees float in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] to float32 in [-1, 1]: x / 127.5 - 1.

    >>> to_float(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1, 1] to uint8, rounding to the nearest byte; values outside are clamped.

    >>> x = torch.arange(256, dtype=torch.uint8)
    >>> torch.equal(to_uint8(to_float(x)), x)
    True
    """
    return images.float().mul(127.5).add_(128.0).clamp_(0.0, 255.0).to(torch.uint8)
