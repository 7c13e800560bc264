"""Names of ImageNet's classes, from torchvision, so that a label can be given as a word."""

from __future__ import annotations

from collections import Counter

NUM_CLASSES = 1000


def imagenet_names() -> list[str] | None:
    """The 1000 names in label order, each once; None where this torchvision has no such list.

    Two classes that share a name (crane the bird and crane the machine) get their label behind it.
    """
    try:
        from torchvision.models._meta import _IMAGENET_CATEGORIES as categories
    except ImportError:
        return None
    if len(categories) != NUM_CLASSES:
        return None
    uses = Counter(categories)
    return [name if uses[name] == 1 else f"{name} ({label})" for label, name in enumerate(categories)]
