"""Which engine runs a network: it must be installed, take the network, and agree with torch on a trial image.

A network is compiled once for its weights, layers, sizes and number of threads, and kept: by its `Backbone`, by the
process, and on disk. Copies of models and later fits find it by a digest; pickles hold none.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections import OrderedDict
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from ipca_sklearn._utils._digests import hex_digest, weights_digest
from ipca_sklearn._utils._surroundings import as_in_a_fresh_process
from ipca_sklearn._utils._threads import calling_modules
from ipca_sklearn.features._settings import FeatureSettings
from ipca_sklearn.features.backbones._hooks import HookedNetwork
from ipca_sklearn.features.engines import _store
from ipca_sklearn.features.engines._engine import Engine, Layers, Unsuitable, live_engines
from ipca_sklearn.linalg import full_precision

# In the order in which "auto" tries them. Each is a module of this folder with `make`, `load` and `version`.
ENGINES = ("openvino", "onnxruntime")
# What "auto" means in this process, where set: the name of an engine, or "torch".
VARIABLE = "IPCA_SKLEARN_ENGINE"
_TOLERANCE = 1e-4  # of the largest value of a layer
_TOLERANCE_REDUCED = 0.1  # of its norm, with bfloat16
_N_KEPT = 4  # networks that stay compiled although no extractor has them any more
_logger = logging.getLogger(__name__)

_building = threading.RLock()
_compiled: WeakValueDictionary[str, Engine] = WeakValueDictionary()
_recent: OrderedDict[str, Engine] = OrderedDict()
_kept_for_parent: list[Any] = []


class Choice(NamedTuple):
    """An engine, or None for torch, and what `engine_` says."""

    engine: Engine | None
    label: str


def _forget() -> None:
    global _building, _compiled, _recent
    _building = threading.RLock()  # a thread of the parent may have held it
    _kept_for_parent.extend([*live_engines, _recent])
    _compiled, _recent = WeakValueDictionary(), OrderedDict()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def choose(settings: FeatureSettings) -> Choice:
    """Return the engine for a network, compiled at the first call; warn where torch replaces one that was named."""
    n_known = len(settings.backbone.engines)
    choice = _choice(settings)
    if choice.engine is None and settings.engine in ENGINES and len(settings.backbone.engines) > n_known:
        warnings.warn(f"engine={settings.engine!r} is not used: {choice.label}", UserWarning, stacklevel=4)
    return choice


def _choice(settings: FeatureSettings) -> Choice:
    wanted = settings.engine
    if wanted == "auto":
        named = os.environ.get(VARIABLE)
        wanted = named if named in ("torch", *ENGINES) else "auto"
    if wanted == "torch":
        return Choice(None, "torch")
    key = (os.getpid(), wanted, torch.get_num_threads(), settings.images.device.type, *_compile_settings(settings))
    choices = settings.backbone.engines
    if key not in choices:
        with _building:
            if key not in choices:
                choices[key] = _first_suitable(wanted, settings)
    return choices[key]


def require(settings: FeatureSettings) -> None:
    """Raise an ImportError or ValueError if an engine that is named cannot run the network."""
    if settings.engine in ("auto", "torch"):
        return
    choice = _choice(settings)
    if choice.engine is not None:
        return
    reason = choice.label.removeprefix("torch: ")
    error = ImportError if reason.endswith("not installed") else ValueError
    raise error(
        f"engine={settings.engine!r} cannot run backbone {settings.backbone.label()}: {reason}. Set engine='auto', "
        "which takes torch then" + (", or install it: pip install 'ipca_sklearn[fast]'" if error is ImportError else "")
    )


def _compile_settings(settings: FeatureSettings) -> tuple[Any, ...]:
    return settings.amp_dtype, settings.compile, settings.backbone.crop_size


def _first_suitable(wanted: str, settings: FeatureSettings) -> Choice:
    reasons = []
    try:
        _check(settings)
        for name in ENGINES if wanted == "auto" else (wanted,):
            try:
                engine, version = _engine(name, settings)
                return Choice(engine, f"{name} {version.partition('-')[0]}")
            except Unsuitable as error:
                reasons.append(str(error))
    except Unsuitable as error:
        reasons.append(str(error))
    return Choice(None, f"torch: {'; '.join(reasons)}")


def _check(settings: FeatureSettings) -> None:
    device, network = settings.images.device, settings.backbone.network
    if device.type != "cpu":
        raise Unsuitable(f"the device is {device}")
    if settings.compile:
        raise Unsuitable("compile=True compiles the network by torch")
    if settings.amp_dtype not in (None, torch.bfloat16):
        raise Unsuitable(f"amp={str(settings.amp_dtype).removeprefix('torch.')!r}")
    if isinstance(network, HookedNetwork):
        raise Unsuitable("hooks read the layers of this network, because torch.fx cannot trace it")
    for value in network.parameters():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise Unsuitable(f"the weights are {str(value.dtype).removeprefix('torch.')}")


def _engine(name: str, settings: FeatureSettings) -> tuple[Engine, str]:
    try:
        module = import_module(f"ipca_sklearn.features.engines._{name}")
        version, platform = module.version(settings.amp_dtype)
    except Unsuitable:
        raise
    except ImportError as error:
        raise Unsuitable(f"{error.name or name} is not installed") from error
    except Exception as error:
        raise Unsuitable(f"{name} does not work here ({_one_line(error)})") from error
    n_threads, amp_dtype, backbone = torch.get_num_threads(), settings.amp_dtype, settings.backbone
    key = _digest(settings, name, version, platform)
    here = f"{key} {n_threads}"
    engine = _compiled.get(here)
    if engine is not None and not backbone.is_own:  # of a module of the user's the digest does not know the code
        _keep(here, engine)
        return engine, version
    network, image, expected = _trial(settings)
    if engine is not None and _difference(engine, image, expected, settings) is None:
        return engine, version
    engine = _loaded(module, key, amp_dtype, n_threads)
    if engine is None or _difference(engine, image, expected, settings) is not None:
        try:
            engine = module.make(network, image, amp_dtype, n_threads)
        except Unsuitable:
            raise
        except Exception as error:  # torch.export, and what converts and compiles, each raise their own
            raise Unsuitable(f"{name} cannot take this network ({_one_line(error)})") from error
        reason = _difference(engine, image, expected, settings)
        if reason is not None:
            raise Unsuitable(f"{name} {reason}")
        _store.write(key, engine.content())
    _compiled[here] = engine
    _keep(here, engine)
    return engine, version


def _loaded(module: Any, key: str, amp_dtype: torch.dtype | None, n_threads: int) -> Engine | None:
    """Return an engine from one for another number of threads, or from the disk."""
    known = next((engine for name, engine in list(_compiled.items()) if name.split()[0] == key), None)
    content = _store.read(key) if known is None else known.content()
    if content is None:
        return None
    try:
        return module.load(content, amp_dtype, n_threads)
    except Exception as error:  # whatever the library makes of it
        _logger.debug("a compiled network is not used: %s", _one_line(error))
        return None


def _keep(key: str, engine: Engine) -> None:
    _recent[key] = engine
    _recent.move_to_end(key)
    while len(_recent) > _N_KEPT:
        _recent.popitem(last=False)


def _digest(settings: FeatureSettings, *versions: str) -> str:
    """Return what tells compiled networks apart."""
    backbone = settings.backbone
    parts = (
        (*versions, torch.__version__, version("torchvision"), _compile_settings(settings)),
        (backbone.layers, backbone.layer_pooling, backbone.margin, backbone.axes()),
        (str(backbone.network), weights_digest(backbone.network)),
    )
    return hex_digest(repr(parts).encode())


def _trial(settings: FeatureSettings) -> tuple[nn.Module, Tensor, list[Tensor]]:
    """Return the network, a normalised image, and its layers by torch."""
    with as_in_a_fresh_process(torch.device("cpu")):
        network = Layers(settings.backbone.to("cpu")).eval()
        noise = torch.Generator().manual_seed(0)
        image = torch.randn(1, 3, *settings.backbone.crop_size, generator=noise)
    with torch.inference_mode(), full_precision(), calling_modules(), as_in_a_fresh_process(torch.device("cpu")):
        expected = [layer.permute(0, 3, 1, 2).float() for layer in network(image)]
    if not all(torch.isfinite(layer).all() for layer in expected):
        raise Unsuitable("torch gives no finite features of a trial image")
    return network, image, expected


def _difference(engine: Engine, image: Tensor, expected: list[Tensor], settings: FeatureSettings) -> str | None:
    """Return how an engine differs from torch on an image, None if it agrees in every layer."""
    try:
        (found,) = ([layer.clone() for layer in layers] for layers in engine.run(image, 0, 1))
    except Exception as error:
        return f"fails on a trial image ({_one_line(error)})"
    for layer, ours, theirs in zip(settings.backbone.map_names, found, expected, strict=True):
        if ours.shape != theirs.shape:
            return f"gives layer {layer!r} the shape {tuple(ours.shape)}, and torch {tuple(theirs.shape)}"
        if settings.amp_dtype is None:
            distance, allowed = float((ours - theirs).abs().max()), _TOLERANCE * float(theirs.abs().max())
        else:
            distance, allowed = float((ours - theirs).norm()), _TOLERANCE_REDUCED * float(theirs.norm())
        if not distance <= allowed:
            return f"differs from torch by {distance:.1e} in layer {layer!r}, {allowed:.1e} is allowed"
    return None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
