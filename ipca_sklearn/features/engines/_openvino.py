"""OpenVINO's CPU plugin as an engine: a network compiled for one image of one size."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ipca_sklearn.features.engines._engine import Engine, Request, Unsuitable, exported


class OpenVINOEngine(Engine):
    """A network compiled by OpenVINO."""

    def __init__(self, compiled: Any) -> None:
        super().__init__()
        self._compiled = compiled

    def content(self) -> bytes:
        """Return the compiled network for a file."""
        stored = self._compiled.export_model()
        return bytes(stored) if isinstance(stored, (bytes, bytearray)) else stored.getvalue()

    def _new_request(self) -> Request:
        infer = self._compiled.create_infer_request()
        outputs = range(len(self._compiled.outputs))
        # Views of its own memory.
        return Request(infer.get_input_tensor(0).data, [infer.get_output_tensor(i).data for i in outputs], infer)

    def _run_one(self, request: Request) -> None:
        request.handle.infer()


def version(amp_dtype: torch.dtype | None) -> tuple[str, str]:
    """Return the version with its build, and the processor; refuse a precision that this has no units for."""
    import openvino

    core = _core(os.getpid())
    capabilities = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    if amp_dtype is not None and "BF16" not in capabilities:
        raise Unsuitable("this CPU has no bfloat16")
    return str(openvino.__version__), f"{core.get_property('CPU', 'FULL_DEVICE_NAME')} {capabilities}"


def make(network: nn.Module, image: Tensor, amp_dtype: torch.dtype | None, n_threads: int) -> OpenVINOEngine:
    """Compile a network for images like `image`."""
    model = _converted(exported(network, image))
    return OpenVINOEngine(_core(os.getpid()).compile_model(model, "CPU", _options(amp_dtype, n_threads)))


def load(content: bytes, amp_dtype: torch.dtype | None, n_threads: int) -> OpenVINOEngine:
    """Return the engine that `content()` of another one describes."""
    return OpenVINOEngine(_core(os.getpid()).import_model(content, "CPU", _options(amp_dtype, n_threads)))


def _options(amp_dtype: torch.dtype | None, n_threads: int) -> dict[str, Any]:
    return {
        # Without it OpenVINO takes bfloat16 by itself where the CPU has it.
        "INFERENCE_PRECISION_HINT": "f32" if amp_dtype is None else "bf16",
        "INFERENCE_NUM_THREADS": n_threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # threads that the caller starts later would inherit it
    }


def _converted(program: torch.export.ExportedProgram) -> Any:
    """Return OpenVINO's model of an exported network."""
    # Not by `openvino.convert_model`, which reports its use over the network, nor by `from_exported_program`, which
    # writes to the root logger (2026.4).
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
    from torch.export.decomp_utils import CustomDecompTable

    table = CustomDecompTable()
    for operator in ops_to_not_decompose():
        if operator in table:
            table.pop(operator)
    decoder = TorchFXPythonDecoder(program.run_decompositions(table).module(), dynamic_shapes=False)
    frontend = FrontEndManager().load_by_framework("pytorch")
    return frontend.convert(frontend.load(decoder))


@cache
def _core(process: int) -> Any:
    """Return OpenVINO's core: one for each process, because its threads do not live on in a fork."""
    import openvino

    return openvino.Core()
