"""Distance operators: one formula for truncated and full covariances, for the detector and for export."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ipca_sklearn import linalg
from ipca_sklearn.linalg import _distances
from ipca_sklearn.linalg._execution import numba_works


def samples_and_basis(dtype: torch.dtype = torch.float32, n_rows: int = 6) -> tuple[Tensor, linalg.Basis]:
    """Return samples (30, 5, 12) and a basis of 4 components, made of 6 rows unless told otherwise."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(30, 5, 12, generator=generator, dtype=torch.float64) * torch.arange(1, 13).rsqrt() + 2
    samples = samples.to(dtype)
    state = linalg.empty_state(5, 12, dtype=dtype)
    for step in samples.split(8):
        state = linalg.update(state, step, n_rows=n_rows)
    return samples, linalg.finalize(state, n_components=4)


def full_covariance(samples: Tensor, ridge: float = 0.1) -> linalg.DistanceOperator:
    state = linalg.update_scatter(linalg.empty_scatter(5, 12, dtype=samples.dtype), samples)
    return linalg.whitening_operator(state, ridge=ridge)


def by_name(name: str) -> tuple[Tensor, linalg.DistanceOperator]:
    samples, basis = samples_and_basis()
    if name == "full covariance":
        return samples, full_covariance(samples)
    return samples, linalg.distance_operator(basis, distance=name, noise_shrinkage=0.5)


ALL = (*linalg.DISTANCES, "full covariance")


@pytest.mark.parametrize("distance", linalg.DISTANCES)
def test_distances_follow_the_formula_of_the_operator(distance: str) -> None:
    samples, basis = samples_and_basis(torch.float64)
    operator = linalg.distance_operator(basis, distance=distance, noise_shrinkage=0.25)
    terms: list[np.ndarray] = []
    deviation = (samples - basis.mean).numpy()
    components = basis.components.numpy()
    projected = np.einsum("npm,pkm->npk", deviation, components)
    residual = deviation - np.einsum("npk,pkm->npm", projected, components)
    if operator.scale is not None:
        np.testing.assert_allclose(operator.scale, basis.variance.rsqrt())
        terms.append(projected * operator.scale.numpy())
    if distance == "factor_analysis":
        noise = basis.feature_noise.numpy()
        terms.append(residual / np.sqrt(0.75 * noise + 0.25 * noise.mean(0)))
    elif distance == "ppca":
        terms.append(residual / np.sqrt(basis.noise_variance.numpy()[:, None]))
    elif distance == "residual":
        terms.append(residual)
    wanted = np.sqrt(sum(np.square(term).sum(-1) for term in terms))
    np.testing.assert_allclose(linalg.patch_distances(operator, samples), wanted, rtol=1e-9)


def test_the_whitening_operator_measures_the_mahalanobis_distance_under_the_ridge() -> None:
    samples, _ = samples_and_basis(torch.float64)
    centred = (samples - samples.mean(0)).transpose(0, 1)
    covariance = centred.mT @ centred / 29 + 0.1 * torch.eye(12, dtype=torch.float64)
    wanted = (centred * torch.linalg.solve(covariance, centred.mT).mT).sum(-1).sqrt().mT
    torch.testing.assert_close(linalg.patch_distances(full_covariance(samples), samples), wanted)


@pytest.mark.parametrize("name", ALL)
def test_folding_the_transform_into_the_rows_keeps_the_distances(name: str) -> None:
    samples, operator = by_name(name)
    folded = operator.folded()
    assert folded.transform is None
    assert folded.rows.shape[1] == (12 if name == "full covariance" else 4)
    torch.testing.assert_close(linalg.patch_distances(folded, samples), linalg.patch_distances(operator, samples))


@pytest.mark.parametrize("name", ALL)
def test_an_operator_goes_to_another_dtype_and_device(name: str, device: torch.device) -> None:
    samples, operator = by_name(name)
    moved = operator.to(device, torch.float64)
    found = linalg.patch_distances(moved, samples)
    assert found.dtype == torch.float64
    assert found.device == device
    torch.testing.assert_close(found.cpu().float(), linalg.patch_distances(operator, samples))
    assert operator.to(torch.device("cpu")).rows is operator.rows


@pytest.mark.parametrize("name", ALL)
def test_samples_and_operator_are_not_changed(name: str) -> None:
    samples, operator = by_name(name)
    tensors = [samples, operator.mean, operator.rows, operator.transform, operator.scale, operator.precision]
    before = [None if tensor is None else tensor.clone() for tensor in tensors]
    linalg.patch_distances(operator, samples)
    for tensor, copy in zip(tensors, before, strict=True):
        assert tensor is copy is None or (tensor is not None and copy is not None and torch.equal(tensor, copy))


def test_an_operator_of_neither_projection_nor_residual_is_refused() -> None:
    _, basis = samples_and_basis()
    operator = linalg.distance_operator(basis, distance="mahalanobis")
    with pytest.raises(ValueError, match="scale and precision are both None"):
        replace(operator, scale=None)


def test_an_unknown_distance_is_refused_with_the_names_that_exist() -> None:
    _, basis = samples_and_basis()
    with pytest.raises(ValueError, match="distance='euclidean' is unknown; use one of 'mahalanobis', 'residual'"):
        linalg.distance_operator(basis, distance="euclidean")


class Distances(nn.Module):
    """An operator inside a module, as export uses it."""

    def __init__(self, operator: linalg.DistanceOperator) -> None:
        super().__init__()
        for name in ("mean", "rows", "transform", "scale", "precision"):
            value = getattr(operator, name)
            # A buffer that is None makes torch.export mistake one buffer for another (torch 2.15, export/_trace.py).
            setattr(self, name, None) if value is None else self.register_buffer(name, value)

    def forward(self, step: Tensor) -> Tensor:
        centred = (step - self.mean).transpose(0, 1)
        return linalg.distances_from_centred(centred, self.rows, self.transform, self.scale, self.precision).mT


def in_eager_mode(module: nn.Module, step: Tensor, folder: Path) -> Callable[[Tensor], Tensor]:
    return module


def by_torch_export(module: nn.Module, step: Tensor, folder: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.export(module, (step,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()


def by_onnx(module: nn.Module, step: Tensor, folder: Path) -> Callable[[Tensor], Tensor]:
    pytest.importorskip("onnxscript", reason="needs the optional dependencies of export")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    path = folder / "distances.onnx"
    shapes = ({0: torch.export.Dim("n")},)
    torch.onnx.export(module, (step,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda step: torch.from_numpy(session.run(None, {name: step.numpy()})[0])


EXPORTED = [("factor_analysis", False), ("factor_analysis", True), ("residual", True), ("full covariance", False)]


@pytest.mark.parametrize(("name", "folded"), EXPORTED)
@pytest.mark.parametrize("way", [in_eager_mode, by_torch_export, by_onnx])
def test_the_core_gives_the_same_distances_within_an_exported_module(
    way: Callable[..., Callable[[Tensor], Tensor]], name: str, folded: bool, tmp_path: Path
) -> None:
    samples, operator = by_name(name)
    operator = operator.folded() if folded else operator
    run = way(Distances(operator).eval(), samples[:7], tmp_path)
    for n_samples in (2, 30):
        expected = linalg.patch_distances(operator, samples[:n_samples])
        torch.testing.assert_close(run(samples[:n_samples]), expected, rtol=1e-5, atol=1e-5)


with_numba = pytest.mark.skipif(not numba_works(), reason="numba is not installed")


@with_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_rows", [4, 6, 11])  # a multiple of what a loop takes together, and not
@pytest.mark.parametrize("name", ALL)
def test_the_numba_kernel_gives_the_distances_of_matrix_products(
    name: str, n_rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, basis = samples_and_basis(dtype, n_rows)
    if name == "full covariance":
        operator = full_covariance(samples)
    else:
        operator = linalg.distance_operator(basis, distance=name, noise_shrinkage=0.5)
    strided = torch.stack([samples, samples], dim=-1)[..., 0]
    by_products = linalg.patch_distances(operator, samples)
    monkeypatch.setattr(_distances, "NUMBA_BATCH", 1)
    monkeypatch.setattr(_distances, "_by_matrix_products", None)  # not called
    for form in (operator, operator.folded()):
        torch.testing.assert_close(linalg.patch_distances(form, strided), by_products, rtol=2e-5, atol=2e-5)


@with_numba
def test_by_the_numba_kernel_a_sample_has_the_same_distance_alone_and_among_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples, operator = by_name("factor_analysis")
    samples[3, 2] = torch.nan
    monkeypatch.setattr(_distances, "NUMBA_BATCH", 1)
    together = linalg.patch_distances(operator, samples)
    for number, sample in enumerate(samples):
        torch.testing.assert_close(
            linalg.patch_distances(operator, sample[None])[0], together[number], rtol=0, atol=0, equal_nan=True
        )
    assert torch.equal(together.isnan().nonzero(), torch.tensor([[3, 2]]))


@pytest.mark.parametrize(
    ("n_patches", "works", "chosen"), [(511, True, "products"), (512, True, "numba"), (512, False, "products")]
)
def test_many_patches_take_the_kernel_if_numba_works(
    n_patches: int, works: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = set()

    def standing_for(name: str) -> Callable[..., Tensor]:
        return lambda samples, *others: taken.add(name) or samples[..., 0]

    monkeypatch.setattr(_distances, "numba_works", lambda: works)
    kernels = types.SimpleNamespace(distances_of_chunk=standing_for("numba"), distances_of_groups=None)
    monkeypatch.setitem(sys.modules, "ipca_sklearn.linalg._numba_distances", kernels)
    monkeypatch.setattr(_distances, "_by_matrix_products", standing_for("products"))
    axis, one = torch.ones(n_patches, 1, 1), torch.ones(n_patches, 1)
    operator = linalg.DistanceOperator(one, axis, None, one, None)
    linalg.patch_distances(operator, torch.ones(2, n_patches, 1))
    assert taken == {chosen}
