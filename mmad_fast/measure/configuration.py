"""What a measured detector consists of, as far as rows must not be confused for lack of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmad_fast.methods.variants import VARIANTS, Variant

_OF_BACKBONE: dict[str, tuple[str, ...]] = {
    "rgb": ("rgb_backbone", "rgb_layers"),
    "point": ("point_layers",),
}
_OF_ALL = {
    "num_groups": 1024,
    "group_size": 128,
    "batch_norm": "cloud",
}
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "cfm": {
        **_OF_ALL,
        "aggregation": "product",
        "mapping": "crossmodal",
        "pixel_stride": 1,
        "precision": "float32",
    },
    "m3dm": {
        **_OF_ALL,
        "point_patches": "56x56",
        "uses_uff": True,
        "uff_pairing": "aligned",
        "uff_schedule": "quick",
        "bank_norm": "published",
        "coreset": "code",
        "reweighting": "code",
        "blur": "pil8bit",
        "dlf_scores": "score_samples",
        "dlf_schedule": "code",
        "point_lambda": 1.0,
        "rgb_lambda": 0.1,
        "fusion_lambda": 1.0,
        "bank_dtype": "float32",
        "precision": "float32",
    },
}
"""Per family the switches that a row holds, each with the method's own value."""
_ONLY_WITH_SETTING: dict[str, tuple[str, str]] = {
    "uses_uff": ("banks", "fusion"),
    "dlf_scores": ("decision", "svm"),
    "dlf_schedule": ("decision", "svm"),
}
"""Switches that mean nothing but where a method's setting is, or holds, that word."""
_POINT_SETTING = ("group_size", "num_groups", "point_patches")
_POINT_SETTINGS: dict[tuple[Any, ...], str] = {
    (64, 784, "groups"): "64 points/784 groups, point groups",
    (128, 1024, "groups"): "128 points/1024 groups, point groups",
    (64, 784, "28x28"): "64 points/784 groups, 28x28 patches",
    (128, 1024, "28x28"): "128 points/1024 groups, 28x28 patches",
}
"""Rows of M3DM's Table 5 besides its usual setting, by _POINT_SETTING."""
_FIT_RECORD = "training"
"""Of a manifest's parameters, the part that only the fit read."""


def configuration_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest's parameters that a row holds, in JSON types."""
    known = {**parameters.get(_FIT_RECORD, {}), **parameters}
    names = dict.fromkeys(
        name for part in (*_OF_BACKBONE.values(), *_OF_FAMILY.values()) for name in part
    )
    return {name: known[name] for name in names if name in known}


def is_variants_own(method: str, configuration: Mapping[str, Any] | None) -> bool:
    """It has the backbones and layers that the method's name stands for."""
    if method not in VARIANTS or configuration is None:
        return False
    variant = VARIANTS[method]
    return all(
        _as_tuple(configuration.get(name)) == _as_tuple(getattr(variant, name))
        for modality in variant.modalities
        for name in _OF_BACKBONE[modality]
    )


def describe_configuration(method: str, configuration: Mapping[str, Any] | None) -> str:
    """What differs from the method's own, e.g. "dinov2-vits14 8 layers, blocks 0"; else empty."""
    if configuration is None:
        return ""
    parts = []
    if not is_variants_own(method, configuration):
        parts.append(_describe_backbones(VARIANTS.get(method), configuration))
    for name, own in _switches(VARIANTS.get(method)).items():
        value = configuration.get(name)
        if value is not None and value != own:
            parts.append(f"{name} {value}")
    return "; ".join(parts)


def describe_method(
    method: str, configuration: Mapping[str, Any] | None, shots: int | None = None
) -> str:
    """The method's name, with what differs from its own in brackets; then the number of training
    scans where they are a chosen few."""
    difference = describe_configuration(method, configuration)
    name = f"{method} ({difference})" if difference else method
    return name if shots is None else f"{name}, {shots}-shot"


def published_name(
    method: str, configuration: Mapping[str, Any] | None, shots: int | None = None
) -> str | None:
    """Under which name measure/published.csv has this detector; None where its backbones or layers
    are not the method's own."""
    if configuration is None or not is_variants_own(method, configuration):
        return None
    name = VARIANTS[method].published
    if method == "m3dm-fusion" and configuration.get("uses_uff") is False:
        name = "M3DM (one fused bank, without UFF)"
    if method == "m3dm-3d":
        setting = tuple(configuration.get(key) for key in _POINT_SETTING)
        if setting in _POINT_SETTINGS:
            name = f"M3DM (3D only, {_POINT_SETTINGS[setting]})"
    return name if shots is None else f"{name} ({shots}-shot)"


def _switches(variant: Variant | None) -> dict[str, Any]:
    """The switches of a method, each with its own value; of an unknown one those of all."""
    if variant is None:
        return {name: own for switches in _OF_FAMILY.values() for name, own in switches.items()}
    settings = variant.settings
    return {
        name: own
        for name, own in _OF_FAMILY[variant.family].items()
        if name not in _ONLY_WITH_SETTING
        or _ONLY_WITH_SETTING[name][1] in settings.get(_ONLY_WITH_SETTING[name][0], ())
    }


def _describe_backbones(variant: Variant | None, configuration: Mapping[str, Any]) -> str:
    parts = []
    modalities = tuple(_OF_BACKBONE) if variant is None else variant.modalities
    if "rgb" in modalities:
        rgb_backbone, rgb_layers = (configuration.get(name) for name in _OF_BACKBONE["rgb"])
        parts.append(f"{rgb_backbone} {rgb_layers} layers")
    if "point" in modalities:
        blocks = ", ".join(str(block) for block in configuration.get("point_layers", ()))
        parts.append(f"blocks {blocks}")
    return ", ".join(parts)


def _as_tuple(value: Any) -> Any:
    """A list as a tuple: JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value
