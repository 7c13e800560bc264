"""Rules of multistep solvers as mappings of plain values, in records and files, today's and older ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dinit.registry import suggest
from dinit.samplers.multistep.rules import Corrector, Extrapolate, Pseudo, Rule, SingleStep

RULES: dict[str, type[Rule]] = {rule.registry_name: rule for rule in (Extrapolate, SingleStep, Pseudo)}


def rule_from_config(config: Mapping[str, Any]) -> Rule:
    """A rule from a mapping of its fields and its 'name': 'extrapolate', 'single-step' or 'pseudo'.

    A mapping without a name has the flat fields of files written before rules had types: prediction, order,
    corrector, variable, variant, corrector_variant, span, stages, reach, differences.

    Args:
        config: The mapping, as `Rule.to_config` writes it.

    Raises:
        ValueError: An unknown name or field, or a value out of its range.
    """
    given = dict(config) if "name" in config else _from_flat(dict(config))
    name = given.pop("name")
    if name not in RULES:
        raise ValueError(f"unknown rule {name!r}{suggest(str(name), list(RULES))}")
    if given.get("max_step_ratio", 0) in (None, "inf"):  # JSON has no infinity
        given["max_step_ratio"] = math.inf
    if isinstance(corrector := given.get("corrector"), Mapping):
        given["corrector"] = Corrector(**{key: value for key, value in corrector.items() if key != "name"})
    return _made(RULES[name], given)


def _made(kind: type[Rule], given: Mapping[str, Any]) -> Rule:
    try:
        return kind(**given)
    except TypeError as error:  # a field that it does not have, or a value of a wrong type
        raise ValueError(f"rule {kind.registry_name!r} cannot be made of {dict(given)!r}: {error}") from error


def _from_flat(old: dict[str, Any]) -> dict[str, Any]:
    known = (
        "prediction", "order", "corrector", "variable", "variant", "corrector_variant", "span", "stages", "reach",
        "differences",
    )  # fmt: skip
    if unknown := [key for key in old if key not in known]:
        raise ValueError(
            f"a rule without a 'name' has no field {unknown[0]!r}{suggest(unknown[0], list(known))}; rules "
            f"of today have a name: {', '.join(RULES)}"
        )
    of_all = {key: old[key] for key in ("prediction", "variable") if key in old}
    variant = old.get("variant", "exact")
    if old.get("stages"):
        return {"name": "single-step", "prediction": "x0", "stages": old["stages"], "variant": variant, **of_all}
    corrector = Corrector(old.get("corrector_variant", "exact"), start_only=not old.get("corrector", True))
    rest = {
        "order": old.get("order", 3),
        "corrector": None if corrector == Corrector(start_only=True) else corrector,
        "start_steps_back": old.get("span", 1) - 1,
        "max_step_ratio": old.get("reach", math.inf) or math.inf,  # None in files of `SolverSearch`
        **of_all,
    }
    if variant == "pseudo":
        return {"name": "pseudo", **rest}
    return {"name": "extrapolate", "variant": variant, "difference_weights": old.get("differences", ()), **rest}
