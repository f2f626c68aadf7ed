"""Fixtures: a seed that can be swept, every device at hand, the real data where it is."""

from __future__ import annotations

import os
from pathlib import Path

# Processes of pytest-xdist share the cores: threads that wait for each other take many times as long as one thread.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Each of the many small networks of the tests would be compiled: those of tests/features/test_engines.py are.
os.environ.setdefault("IPCA_SKLEARN_ENGINE", "torch")

import pytest
import torch
from hypothesis import settings

# Wall-clock limits of single examples measure the machine, not the code.
settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("IPCA_SKLEARN_HYPOTHESIS", "default"))

DEVICES = ["cpu"] + [f"cuda:{index}" for index in range(min(1, torch.cuda.device_count()))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One seed by default; IPCA_SKLEARN_SEEDS="0-99" or "3" sweeps others."""
    if "global_random_seed" in metafunc.fixturenames:
        first, _, last = os.environ.get("IPCA_SKLEARN_SEEDS", "0").partition("-")
        metafunc.parametrize("global_random_seed", range(int(first), int(last or first) + 1))


@pytest.fixture(autouse=True)
def weights_do_not_depend_on_the_tests_before() -> None:
    """A module made by a test has the weights that it has when the test runs alone."""
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with magnetic_tile/ and mvtec/, the real images."""
    root = os.environ.get("IPCA_SKLEARN_DATA")
    if not root:
        pytest.skip("IPCA_SKLEARN_DATA does not name a folder with magnetic_tile/ and mvtec/")
    return Path(root)
