"""What a measured detector consists of, as far as rows must not be confused for lack of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmad_fast.methods.cfm.parameters import CfmParameters
from mmad_fast.methods.variants import VARIANTS

_OF_VARIANT = ("rgb_backbone", "rgb_layers", "point_layers")
_OF_FAMILY = (
    "num_groups",
    "group_size",
    "batch_norm",
    "aggregation",
    "mapping",
    "pixel_stride",
    "precision",
)


def configuration_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest's parameters that a row holds, in JSON types."""
    return {name: parameters[name] for name in (*_OF_VARIANT, *_OF_FAMILY) if name in parameters}


def is_variants_own(method: str, configuration: Mapping[str, Any] | None) -> bool:
    """It has the backbone and layers that the method's name stands for."""
    if method not in VARIANTS or configuration is None:
        return False
    variant = VARIANTS[method]
    return (
        configuration.get("rgb_backbone"),
        configuration.get("rgb_layers"),
        tuple(configuration.get("point_layers", ())),
    ) == (variant.rgb_backbone, variant.rgb_layers, variant.point_layers)


def describe_configuration(method: str, configuration: Mapping[str, Any] | None) -> str:
    """What differs from the method's own, e.g. "dinov2-vits14 8 layers, blocks 0"; else empty."""
    if configuration is None:
        return ""
    parts = []
    if not is_variants_own(method, configuration):
        blocks = ", ".join(str(block) for block in configuration.get("point_layers", ()))
        parts.append(
            f"{configuration.get('rgb_backbone')} {configuration.get('rgb_layers')} layers, "
            f"blocks {blocks}"
        )
    for name in _OF_FAMILY:
        value = configuration.get(name)
        if value is not None and value != getattr(CfmParameters, name):
            parts.append(f"{name} {value}")
    return "; ".join(parts)


def describe_method(method: str, configuration: Mapping[str, Any] | None) -> str:
    """The method's name, with what differs from its own in brackets."""
    difference = describe_configuration(method, configuration)
    return f"{method} ({difference})" if difference else method
