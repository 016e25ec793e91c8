"""What a measured detector consists of, as far as rows must not be confused for lack of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmad_fast.methods.family import Family, Variant, families, find_method
from mmad_fast.methods.options import option_default, option_fields, todays_value

_FIT_RECORD = "training"
"""Of a manifest's parameters, the part that only the fit read."""


def configuration_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest's parameters that a row holds, in JSON types."""
    known = {**parameters.get(_FIT_RECORD, {}), **parameters}
    names = dict.fromkeys(name for family in families() for name in _own_values(family, None))
    return {name: known[name] for name in names if name in known}


def is_variants_own(method: str, configuration: Mapping[str, Any] | None) -> bool:
    """It has the networks that the method's name stands for."""
    found = find_method(method)
    if found is None or configuration is None:
        return False
    family, variant = found
    own = _own_values(family, variant)
    return all(
        _as_tuple(configuration.get(name)) == _as_tuple(own[name])
        for branch in family.branches_of(variant)
        for name in branch.identity
        if name in own
    )


def describe_configuration(method: str, configuration: Mapping[str, Any] | None) -> str:
    """What differs from the method's own, e.g. "dinov2-vits14 8 layers, blocks 0"; else empty."""
    if configuration is None:
        return ""
    configuration = _in_todays_words(configuration)
    found = find_method(method)
    known = (found,) if found else tuple((family, None) for family in families())
    own = {n: v for family, variant in known for n, v in _own_values(family, variant).items()}
    branches = {
        branch.key: branch
        for family, variant in known
        for branch in (family.branches_of(variant) if variant else family.branches)
    }
    networks = {name for branch in branches.values() for name in branch.identity}
    parts = []
    if branches and not is_variants_own(method, configuration):
        parts.append(", ".join(one.describe(configuration) for one in branches.values()))
    for name, own_value in own.items():
        value = _as_tuple(configuration.get(name))
        if name not in networks and value is not None and value != own_value:
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
    """Under which name measure/published.csv has this detector; None where it does not, or its
    networks are not the method's own."""
    found = find_method(method)
    if found is None or configuration is None or not is_variants_own(method, configuration):
        return None
    family, variant = found
    name = family.published_name(variant, configuration)
    return name if shots is None or name is None else f"{name} ({shots}-shot)"


def _own_values(family: Family, variant: Variant | None) -> dict[str, Any]:
    """The options that rows of a variant hold, each with the variant's own value; of all the
    family's for None."""
    names = [name for name, facts in option_fields(family.options).items() if facts.in_rows]
    if variant is None:
        return {name: option_default(family.options, name) for name in names}
    own = family.options(**variant.values).with_constants()
    used = {n for branch in family.branches_of(variant) for n in option_fields(branch.options)}
    of_branches = {n for branch in family.branches for n in option_fields(branch.options)}
    left_out = {*own.without_effect(), *(of_branches - used)}
    return {name: getattr(own, name) for name in names if name not in left_out}


def _in_todays_words(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the names that they have in this version."""
    facts = {n: f for family in families() for n, f in option_fields(family.options).items()}
    return {n: todays_value(v, facts[n]) if n in facts else v for n, v in configuration.items()}


def _as_tuple(value: Any) -> Any:
    """A list as a tuple: JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value
