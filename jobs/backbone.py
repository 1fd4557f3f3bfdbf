"""A timm backbone with the weights that were asked for, checked key by key; never random weights in silence.

timm's own loaders are lenient where the classifier differs: a file of another backbone would be half loaded without a
word. So a file is compared with the backbone here, and only its classifier may be absent or of another size.
"""

from __future__ import annotations

import difflib
import inspect
import json
import socket
import struct
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import huggingface_hub
import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from jobs.weights import EMBEDDED, load_embedded
from plants.errors import InputError
from plants.geometry import Interpolation
from plants.plant import Trunk

OFFLINE = (
    "Offline choices: weights: embedded (test_resnet), a path or s3:// address of a safetensors file, "
    "or none (random, for comparison only)"
)


@dataclass(frozen=True)
class Backbone:
    """A backbone without classifier, in evaluation mode, and what its weights were trained with."""

    net: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation


def load_backbone(trunk: Trunk, *, read: Callable[[str], bytes] | None = None, seed: int = 0) -> Backbone:
    """The backbone of a trunk with its weights. Raises InputError for an unknown name or weights that do not fit."""
    if trunk.weights == "hub":
        net = _from_hub(trunk)
        metadata: dict[str, Any] = {}
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = _create(trunk, pretrained=False)
        metadata = {}
        if trunk.weights == "embedded":
            _load_state(net, load_embedded(trunk.backbone), trunk=trunk, source=EMBEDDED["file"])
            metadata = EMBEDDED
        elif trunk.weights != "none":
            metadata = _load_file(net, trunk=trunk, read=read)
    config = getattr(net, "pretrained_cfg", {})
    mean = trunk.mean or metadata.get("mean") or config.get("mean") or 0.5
    std = trunk.std or metadata.get("std") or config.get("std") or 0.5
    interpolation = trunk.interpolation or metadata.get("interpolation") or config.get("interpolation") or "bilinear"
    return Backbone(net=net.eval(), mean=_rgb(mean), std=_rgb(std), interpolation=_known(interpolation))


def trained_px(trunk: Trunk) -> int | None:
    """The input size that a trunk's weights were trained at; None where they are random or timm does not say."""
    if trunk.weights == "none":
        return None
    if trunk.weights == "embedded":
        return int(EMBEDDED["size_px"])
    config = _config(trunk)
    return config and int(config.input_size[-1])


def _known(interpolation: str) -> Interpolation:
    for known in get_args(Interpolation):
        if interpolation == known:
            return known  # type: ignore[no-any-return]
    raise InputError(
        f"the weights were trained with {interpolation} resizing",
        field="trunks.interpolation",
        remedy=f"Set one of {', '.join(get_args(Interpolation))}",
    )


def _rgb(value: float | Sequence[float]) -> tuple[float, ...]:
    """One value a channel; some of timm's configurations give one for all."""
    values = (value,) if isinstance(value, int | float) else tuple(value)
    return tuple(float(v) for v in (values * 3 if len(values) == 1 else values))


def _config(trunk: Trunk) -> Any:
    """timm's configuration of the backbone's weights. Raises InputError for a name timm does not know."""
    known = timm.is_model(trunk.backbone.split(".")[0])
    try:
        config = timm.get_pretrained_cfg(trunk.backbone) if known else None
    except RuntimeError as error:
        base = trunk.backbone.split(".")[0]
        raise InputError(str(error).rstrip("."), field="trunks.backbone", remedy=f"Without the tag: {base}") from None
    if known:
        return config
    names = timm.list_models()
    near = difflib.get_close_matches(trunk.backbone.split(".")[0], names, n=4) or ["test_resnet", "resnet18"]
    raise InputError(
        f"timm knows no backbone {trunk.backbone!r}",
        field="trunks.backbone",
        remedy=f"Similar names: {', '.join(near)}",
    )


def _create(trunk: Trunk, *, pretrained: bool) -> nn.Module:
    options, config = dict(trunk.options), _config(trunk)
    if config is not None and config.fixed_input_size:
        options.setdefault("img_size", trunk.size_px)
    try:
        net: nn.Module = timm.create_model(trunk.backbone, pretrained=pretrained, num_classes=0, **options)
    except (TypeError, AssertionError) as error:
        raise InputError(
            f"{trunk.backbone} does not take options {sorted(options)} ({error})", field="trunks.options"
        ) from None
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None) or (1,)
    patch = (patch,) if isinstance(patch, int) else patch
    if any(trunk.size_px % p for p in patch):
        raise InputError(
            f"{trunk.backbone} sees patches of {patch[0]} px, and {trunk.size_px} is no multiple of that",
            field="trunks.size_px",
        )
    return net


def _from_hub(trunk: Trunk) -> nn.Module:
    config = _config(trunk)
    if config is None or not config.has_weights:
        raise InputError(f"the hub has no weights for {trunk.backbone}", field="trunks.weights", remedy=OFFLINE)
    if not _is_cached(config) and not _is_reachable(str(huggingface_hub.constants.ENDPOINT)):
        raise InputError(
            f"weights of {trunk.backbone} are not in the cache and the hub cannot be reached",
            field="trunks.weights",
            remedy=OFFLINE,
        )
    try:
        return _create(trunk, pretrained=True)
    except InputError:
        raise
    except Exception as error:  # hub clients raise their own kinds: httpx, requests, urllib, OSError, RuntimeError
        raise InputError(
            f"weights of {trunk.backbone} could not be had from the hub ({type(error).__name__})",
            field="trunks.weights",
            remedy=OFFLINE,
        ) from None


def _is_cached(config: Any) -> bool:
    names = ("model.safetensors", "pytorch_model.bin")
    return bool(config.hf_hub_id) and any(
        isinstance(huggingface_hub.try_to_load_from_cache(config.hf_hub_id, name), str) for name in names
    )


def _is_reachable(address: str, *, timeout_s: float = 5.0) -> bool:
    """Whether a connection opens, asked once: the hub's own client tries for 47 s before it gives up."""
    url = urllib.parse.urlsplit(address)
    if urllib.request.getproxies().get(url.scheme):
        return True
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def _load_file(net: nn.Module, *, trunk: Trunk, read: Callable[[str], bytes] | None) -> dict[str, Any]:
    """The weights are in the backbone; returns the file's metadata (mean, std, interpolation where it states them)."""
    data, source = _bytes(trunk, read=read), trunk.weights
    try:
        state = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError):
        raise InputError(
            "is not a safetensors file", file=source, field="trunks.weights", remedy="Convert it with safetensors.torch"
        ) from None
    _load_state(net, state, trunk=trunk, source=source)
    return _metadata(data, trunk=trunk)


def _load_state(net: nn.Module, state: dict[str, Tensor], *, trunk: Trunk, source: str) -> None:
    """The backbone holds these weights. Raises InputError unless they are all of them, but for the classifier."""
    classifiers = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    prefixes = tuple(f"{c}." for c in ([classifiers] if isinstance(classifiers, str) else classifiers))
    state = {name: value for name, value in state.items() if not name.startswith(prefixes or ("\0",))}
    own = net.state_dict()
    if _misfits(own, state):
        state = _converted(net, state)
    misfits = _misfits(own, state)
    if misfits:
        raise InputError(
            f"holds no weights for {trunk.backbone}: {len(misfits)} tensors do not fit, e.g. {misfits[0]}",
            file=source,
            field="trunks.weights",
            remedy="Name the backbone these weights were made for, with its options",
        )
    net.load_state_dict({name: state[name].to(value.dtype) if name in state else value for name, value in own.items()})


def _bytes(trunk: Trunk, *, read: Callable[[str], bytes] | None) -> bytes:
    if "://" in trunk.weights:
        if read is None:
            raise InputError("weights in a store need a reader", file=trunk.weights, field="trunks.weights")
        return read(trunk.weights)
    try:
        return Path(trunk.weights).read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({type(error).__name__})"
        raise InputError(reason, file=trunk.weights, field="trunks.weights", remedy=OFFLINE) from None


def _misfits(own: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    """Tensors that are missing, superfluous or of another shape, each with what is wrong."""
    counters = "num_batches_tracked"
    missing = [f"{n} is missing" for n in own if n not in state and not n.endswith(counters)]
    extra = [f"{n} is unknown" for n in state if n not in own and not n.endswith(counters)]
    shapes = [
        f"{n} is {list(state[n].shape)}, expected {list(v.shape)}"
        for n, v in own.items()
        if n in state and state[n].shape != v.shape
    ]
    return shapes + missing + extra


def _converted(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state after timm's own conversion for this family (position embeddings of another input size, old names)."""
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if convert is None or len(inspect.signature(convert).parameters) < 2:
        return state
    try:
        converted: dict[str, Tensor] = convert(dict(state), net)
    except (KeyError, RuntimeError, IndexError, ValueError, AttributeError):  # not a file of this family
        return state
    return converted


def _metadata(data: bytes, *, trunk: Trunk) -> dict[str, Any]:
    """`mean`, `std` and `interpolation` from the header of a safetensors file, where it has them.

    Raises InputError where the header asks for a padding that the trunk's options do not give.
    """
    (length,) = struct.unpack("<Q", data[:8])
    raw = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    padding = raw.get("pad_type")
    if padding and trunk.options.get("pad_type", "") != padding:
        raise InputError(
            f"was trained with pad_type {padding!r}",
            file=trunk.weights,
            field="trunks.options",
            remedy=f"Set options: {{pad_type: {padding}}}",
        )
    try:
        found = {key: json.loads(raw[key]) for key in ("mean", "std") if key in raw}
        return {key: _rgb(value) for key, value in found.items()} | {"interpolation": raw.get("interpolation")}
    except (ValueError, TypeError):
        raise InputError("states a mean or std that is no number", file=trunk.weights, field="trunks.weights") from None
