"""onnxruntime's CPU provider as an engine; it needs onnx and onnxscript to convert a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ipca_sklearn.features.engines._engine import Engine, Request, Unsuitable, exported


class OnnxRuntimeEngine(Engine):
    """A network run by onnxruntime, from a model in the format of ONNX."""

    def __init__(self, model: bytes, n_threads: int) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = n_threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        self._model = model
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def content(self) -> bytes:
        """Return the model for a file."""
        return self._model

    def _new_request(self) -> Request:
        image, *layers = (
            np.empty(value.shape, np.float32) for value in (*self._session.get_inputs(), *self._session.get_outputs())
        )
        binding = self._session.io_binding()
        named = zip(self._session.get_outputs(), layers, strict=True)
        binding.bind_input(self._session.get_inputs()[0].name, "cpu", 0, image.dtype, image.shape, image.ctypes.data)
        for output, layer in named:
            binding.bind_output(output.name, "cpu", 0, layer.dtype, layer.shape, layer.ctypes.data)
        return Request(image, layers, binding)

    def _run_one(self, request: Request) -> None:
        self._session.run_with_iobinding(request.handle)


def version(amp_dtype: torch.dtype | None) -> tuple[str, str]:
    """Return the version, and nothing else that a model depends on; refuse bfloat16, which it lacks on CPUs."""
    import onnxruntime

    if amp_dtype is not None:
        raise Unsuitable("onnxruntime has no bfloat16 on CPUs")
    return str(onnxruntime.__version__), ""


def make(network: nn.Module, image: Tensor, amp_dtype: torch.dtype | None, n_threads: int) -> OnnxRuntimeEngine:
    """Convert a network for images like `image`, and start a session."""
    import onnxscript  # noqa: F401  (torch.onnx needs it)

    program: Any = torch.onnx.export(exported(network, image), dynamo=True, opset_version=18, verbose=False)
    return OnnxRuntimeEngine(program.model_proto.SerializeToString(), n_threads)


def load(content: bytes, amp_dtype: torch.dtype | None, n_threads: int) -> OnnxRuntimeEngine:
    """Return the engine that `content()` of another one describes."""
    return OnnxRuntimeEngine(content, n_threads)
