"""A fitted pipeline for other programs: a torch module, an ONNX file or an OpenVINO model, network included."""

from ipca_sklearn.export._agreement import Agreement
from ipca_sklearn.export._module import to_torch
from ipca_sklearn.export._onnx import to_onnx
from ipca_sklearn.export._openvino import to_openvino
from ipca_sklearn.features._modules import tile_module

__all__ = ["Agreement", "tile_module", "to_onnx", "to_openvino", "to_torch"]
