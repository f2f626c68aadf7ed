"""The program around us changes nothing: every public call gives the same bits, and leaves the program as it was."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import locale
import os
import pkgutil
import random
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
import torch

import ipca_sklearn
from tests.surroundings.bits import digest, forget_derived
from tests.surroundings.calls import public_calls
from tests.surroundings.world import World

# What the table lacks, and why.
LEFT_OUT = {
    "datasets.fetch_magnetic_tile": "downloads",
    "distributed.fit_rank": "takes a group of processes; its steps are those of distributed.fit",
    "export.to_onnx": "takes seconds: test_an_exported_file_does_not_depend_on_the_program",
    "features.list_backbones": "texts",
    "features.weights_license": "a text",
    "datasets.list_images": "lists files; datasets.load_test_images calls it",
    "inspection.defect_mask": "draws what find_defects returns",
    "inspection.open_upright": "decodes a file as the extractor does",
    "HtmlReport.add_encoded": "writes what HtmlReport.add has made of an image",
    "HtmlReport.read_encoded": "reads what HtmlReport.add_encoded has written",
    "persistence.new_images": "compares numbers of pixel_numbers",
    "persistence.noting_pixels": "keeps numbers of pixel_numbers",
    "export.to_openvino": "takes seconds: a file of to_onnx, which OpenVINO reads",
    "export.tile_module": "a part of the extractor's network, as to_torch makes it",
    **dict.fromkeys((f"GroupedSamples.{name}" for name in ("device", "dtype", "shape", "split", "to")), "moves"),
    "watching.run_command": "starts a program, and calculates nothing",
    "AnomalyMapDisplay.from_false_positives": "from_estimator, with other images",
    **dict.fromkeys(
        (f"{name}Display.plot" for name in ("AnomalyMap", "Drift", "ExplainedVariance", "Pimo", "Threshold")),
        "drawn by matplotlib from what the display holds",
    ),
    **dict.fromkeys(
        (f"FolderWatcher.{name}" for name in ("batches", "close", "look", "retry", "stop")),
        "lists files; watching.watch calls it",
    ),
    **dict.fromkeys((f"RowFile.{name}" for name in ("close", "columns", "image_keys")), "in RowFile.append"),
    "NewImage.key": "a part of a record",
    "OneClassKFold.set_split_request": "made by scikit-learn",
    "RepeatedOneClassKFold.set_split_request": "made by scikit-learn",
    **dict.fromkeys(
        (f"ProductRouter.set_{method}_request" for method in ("decision_function", "predict", "transform")),
        "made by scikit-learn",
    ),
    **dict.fromkeys(
        (f"PatchFeatureExtractor.{name}" for name in ("engine_", "first_size", "training_features")),
        "a text, a size, and what fit_transform returns",
    ),
    **dict.fromkeys((f"PatchFeatures.{name}" for name in ("n_copies", "read_copies")), "what a fit with copies reads"),
    **dict.fromkeys((f"Defect.{name}" for name in ("as_dict", "outlines")), "of what predict_regions returns"),
    "PatchGaussianDetector.n_gaussians_": "a number that was learnt",
    "persistence.record_training": "keeps the date",
    "inspection.model_card": "texts and numbers that are stored",
    **dict.fromkeys((f"ModelCard.to_{form}" for form in ("dict", "html", "json", "markdown", "text")), "texts"),
    "detection.find_defects": "predict_regions calls it",
    "DetectorGridSearchCV.fit": "fits detectors, and searches as scikit-learn does",
}  # fmt: skip


@contextmanager
def setting(get: Callable[[], Any], set_to: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = get()
    set_to(value)
    try:
        yield
    finally:
        set_to(before)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def strict_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def other_seeds() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  (the program's own)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


@contextmanager
def settings_of_others(folder: Path) -> Iterator[None]:
    """How numpy prints, what scikit-learn checks, seeds, and the working directory."""
    with ExitStack() as stack:
        stack.enter_context(np.printoptions(precision=1, threshold=2, edgeitems=1, legacy="1.13"))
        stack.enter_context(
            sklearn.config_context(
                assume_finite=True, skip_parameter_validation=True, enable_metadata_routing=True, working_memory=1
            )
        )
        stack.enter_context(other_seeds())
        stack.enter_context(contextlib.chdir(folder))
        yield


@contextmanager
def decimal_comma(folder: Path) -> Iterator[None]:
    """A locale with a decimal comma, compiled here: few machines have one."""
    if shutil.which("localedef") is None:
        pytest.skip("glibc's localedef is not installed")
    source = folder / "comma"
    source.write_text(
        'LC_CTYPE\ncopy "POSIX"\nEND LC_CTYPE\nLC_NUMERIC\ndecimal_point ","\nthousands_sep "."\ngrouping 3;3\n'
        "END LC_NUMERIC\n"
    )
    command = ["localedef", "--no-archive", "-c", "-i", str(source), "-f", "ANSI_X3.4-1968", str(folder / "xx_XX")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not (folder / "xx_XX" / "LC_NUMERIC").is_file():
        pytest.skip(f"localedef compiles no locale here: {done.stderr[:200]}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LOCPATH", str(folder))
        locale.setlocale(locale.LC_NUMERIC, "xx_XX")
        try:
            assert locale.localeconv()["decimal_point"] == ","
            yield
        finally:
            locale.setlocale(locale.LC_NUMERIC, "C")


@contextmanager
def settings_of_torch() -> Iterator[None]:
    """All that change how torch computes, and not what it computes with."""
    flags = {
        torch.are_deterministic_algorithms_enabled: torch.use_deterministic_algorithms,
        lambda: False: torch.set_flush_denormal,
    }
    with ExitStack() as stack:
        for get, set_to in flags.items():
            stack.enter_context(setting(get, set_to, True))
        precision = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
        stack.enter_context(setting(*precision, "medium"))  # products in bfloat16
        stack.enter_context(torch.no_grad())
        yield


@contextmanager
def errors() -> Iterator[None]:
    """numpy's and Python's warnings as errors, where scikit-learn leaves out no check."""
    with np.errstate(all="raise"), strict_warnings(), torch.autograd.set_detect_anomaly(True):
        yield


@contextmanager
def half_precision() -> Iterator[None]:
    default = setting(torch.get_default_dtype, torch.set_default_dtype, torch.float16)
    with default, torch.autocast("cpu", torch.float16):
        yield


@contextmanager
def bfloat16_and_double() -> Iterator[None]:
    default = setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64)
    with default, torch.autocast("cpu", torch.bfloat16):
        yield


@contextmanager
def both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield


# Each takes all public calls once more, so settings that do not hide each other are made together. Threads are not
# among them: their number changes the rounding of products (docs/guide_operations.md).
SURROUNDINGS: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
    "autocast to bfloat16, default dtype float64, settings of what we import": lambda folder: both(
        bfloat16_and_double(), settings_of_others(folder)
    ),
    "autocast to float16, default dtype float16, no gradients, how torch computes": lambda _: both(
        half_precision(), settings_of_torch()
    ),
    "another default device": lambda _: default_device("meta"),  # like a GPU, and it holds no values
    "warnings are errors, and anomaly detection": lambda _: errors(),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def plain(world: World) -> dict[str, str]:
    """The bits of all calls in a program that has set nothing."""
    found = {}
    for name, call in public_calls(world).items():
        forget_derived()
        found[name] = digest(call())
    return found


def differences(world: World, plain: dict[str, str], enter: Callable[[], AbstractContextManager[Any]]) -> list[str]:
    """Make each call within a surrounding, and say which of them fail, differ, or leave the program changed."""
    found = []
    for name, call in public_calls(world).items():
        forget_derived()
        try:
            with enter():
                before = state_of_the_program()
                result = call()
                changed = [key for key, value in state_of_the_program().items() if value != before[key]]
        except Exception as error:
            found.append(f"{name} raises {type(error).__name__}: {str(error)[:200]}")
            continue
        if digest(result) != plain[name]:
            found.append(f"{name} differs")
        if changed:
            found.append(f"{name} changes {', '.join(changed)}")
    return found


def state_of_the_program() -> dict[str, Any]:
    return {
        "autocast": torch.is_autocast_enabled("cpu"),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "inference mode": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "numpy's errors": np.geterr(),
        "print options": np.get_printoptions(),
        "filters of warnings": list(warnings.filters),
        "directory": os.getcwd(),
        "locale": locale.setlocale(locale.LC_NUMERIC),
        "seed of random": random.getstate(),
        "seed of numpy": digest(np.random.get_state()),  # noqa: NPY002
        "seed of torch": digest(torch.get_rng_state()),
    }


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_every_public_call_gives_the_same_bits_and_changes_no_setting(
    name: str, world: World, plain: dict[str, str], tmp_path: Path
) -> None:
    assert not differences(world, plain, lambda: SURROUNDINGS[name](tmp_path))


def test_a_plain_program_is_left_as_it_was_too(world: World, plain: dict[str, str]) -> None:
    assert not differences(world, plain, contextlib.nullcontext)


def test_every_public_call_gives_the_same_bits_in_another_thread_with_a_decimal_comma(
    world: World, plain: dict[str, str], tmp_path: Path
) -> None:
    """In inference mode, which belongs to a thread; a locale belongs to the process."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(differences(world, plain, torch.inference_mode)))
    with decimal_comma(tmp_path):
        thread.start()
        thread.join()
    assert not found


def test_every_public_call_gives_the_same_bits_in_another_process(
    world: World, plain: dict[str, str], tmp_path: Path
) -> None:
    """With other hashes, without assertions, with warnings as errors, and with ASCII for text."""
    settings = {"PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(__file__).parents[2]), "LC_ALL": "C"}
    settings |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-O", "-W", "error", "-m", "tests.surroundings.calls", str(world.folder)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert [name for name, bits in plain.items() if found[name] != bits] == []


def test_the_table_has_every_public_call(world: World) -> None:
    """Whoever adds a public function or method adds it to `calls.py`, or says above why not."""
    known = {name.split(" ")[0] for name in public_calls(world)}
    assert sorted(public_names() - known - LEFT_OUT.keys()) == []


def public_names() -> set[str]:
    """All functions as `room.name`, and what classes of the package offer as `Class.name`."""
    names = set()
    rooms = [name for _, name, _ in pkgutil.iter_modules(ipca_sklearn.__path__) if not name.startswith("_")]
    for room in rooms:
        module = importlib.import_module(f"ipca_sklearn.{room}")
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value):
                if not issubclass(value, BaseException):
                    names |= {f"{name}.{part}" for part in _own_parts(value)}
            elif callable(value):
                names.add(f"{room}.{name}")
    return names


def _own_parts(cls: type) -> set[str]:
    ours = (vars(base) for base in cls.__mro__ if base.__module__.startswith("ipca_sklearn"))
    found = {name: value for part in ours for name, value in part.items() if not name.startswith("_")}
    return {
        name
        for name, value in found.items()
        if callable(value) or isinstance(value, (property, classmethod, staticmethod)) or hasattr(value, "__get__")
    } - set(getattr(cls, "_fields", ()))
