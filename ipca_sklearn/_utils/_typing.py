"""Names of types that appear in many signatures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image as PILImage

PathLike: TypeAlias = str | os.PathLike[str]
# A GPU's number, a name such as "cuda:1", a torch.device; None and "auto" where the parameter's text says so.
DeviceLike: TypeAlias = str | int | torch.device | None
# A name ("float32"), a numpy or a torch dtype.
DTypeLike: TypeAlias = str | type | np.dtype[Any] | torch.dtype | None
# What numpy takes, and tensors on any device.
ArrayLike: TypeAlias = "np.typing.ArrayLike | Tensor"
# One image: a file, its content, a PIL image, an array (H, W, C), a tensor (C, H, W).
Image: TypeAlias = "PathLike | bytes | PILImage.Image | np.ndarray | Tensor"
# Many images: a sequence of any of them, an array (n, H, W, C), a tensor (n, C, H, W).
Images: TypeAlias = "Sequence[Image] | np.ndarray | Tensor"
# Height and width in pixels, or rows and columns of patches.
Size: TypeAlias = tuple[int, int]
