"""Names to choose from, by kind, as timm lists models: `dinit.list_samplers("*2m*")`."""

from __future__ import annotations


def list_samplers(pattern: str = "*") -> list[str]:
    """Names of samplers, for `sampler=`.

    Args:
        pattern: with `*`, `?` and `[...]`; case does not matter.

    Returns:
        The names that match, sorted.
    """
    from dinit.samplers import SAMPLERS

    return SAMPLERS.names(pattern)


def list_grids(pattern: str = "*") -> list[str]:
    """Names of time grids, for `grid=`.

    Args:
        pattern: see `list_samplers`.

    Returns:
        The names that match, sorted.
    """
    from dinit.samplers import GRIDS

    return GRIDS.names(pattern)


def list_guidances(pattern: str = "*") -> list[str]:
    """Names of guidances, for `guidance=`.

    Args:
        pattern: see `list_samplers`.

    Returns:
        The names that match, sorted.
    """
    from dinit.samplers.guidance import GUIDANCES

    return GUIDANCES.names(pattern)


def list_backbones(pattern: str = "*", presets: bool = False) -> list[str]:
    """Names of backbones, for `BACKBONES.create` and for recipes.

    Args:
        pattern: see `list_samplers`.
        presets: list published sizes, as 'DiT-XL/2', in place of the backbones. `BACKBONES.create` takes them.

    Returns:
        The names that match, sorted; sizes of one backbone in the order of its own table.
    """
    from dinit.models import BACKBONES

    return BACKBONES.presets(pattern) if presets else BACKBONES.names(pattern)


def list_processes(pattern: str = "*") -> list[str]:
    """Names of noise processes.

    Args:
        pattern: see `list_samplers`.

    Returns:
        The names that match, sorted.
    """
    from dinit.diffusion import PROCESSES

    return PROCESSES.names(pattern)


def list_parameterizations(pattern: str = "*") -> list[str]:
    """Names of parameterizations: what a network can predict.

    Args:
        pattern: see `list_samplers`.

    Returns:
        The names that match, sorted.
    """
    from dinit.diffusion import PARAMETERIZATIONS

    return PARAMETERIZATIONS.names(pattern)


def list_datasets(pattern: str = "*") -> list[str]:
    """Names of data sets, for recipes and `dinit encode`.

    Args:
        pattern: see `list_samplers`.

    Returns:
        The names that match, sorted.
    """
    from dinit.data import DATASETS

    return DATASETS.names(pattern)


def list_metrics(pattern: str = "*") -> list[str]:
    """Names of metrics, for `dinit.evaluate`.

    Args:
        pattern: see `list_samplers`.

    Returns:
        The names that match, sorted.
    """
    from dinit.evaluation import METRICS

    return METRICS.names(pattern)


def list_pipelines(pattern: str = "*") -> list[str]:
    """Names of the pipelines that are shipped with the package, for `Pipeline.from_pretrained`.

    Args:
        pattern: see `list_samplers`.

    Returns:
        The names that match, sorted.
    """
    import fnmatch

    from dinit.checkpoints.locating import shipped

    return fnmatch.filter(sorted(shipped()), pattern.lower())


def list_recipes(pattern: str = "*") -> list[str]:
    """Names of the recipes that are shipped with the package, for `load_recipe` and `dinit train`.

    Args:
        pattern: see `list_samplers`.

    Returns:
        The names that match, sorted.
    """
    import fnmatch

    from dinit.training.recipe.shipped import shipped_recipes

    return fnmatch.filter(list(shipped_recipes()), pattern.lower())
