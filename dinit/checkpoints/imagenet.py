"""ImageNet class names, from torchvision, so that a label can be given by name."""

from __future__ import annotations

from collections import Counter

NUM_CLASSES = 1000


def imagenet_names() -> list[str] | None:
    """The 1000 class names in label order, each unique; None where this torchvision has no such list.

    Where two classes share a name (crane the bird and crane the machine), the label is appended to it.
    """
    try:
        from torchvision.models._meta import _IMAGENET_CATEGORIES as categories
    except ImportError:
        return None
    if len(categories) != NUM_CLASSES:
        return None
    uses = Counter(categories)
    return [name if uses[name] == 1 else f"{name} ({label})" for label, name in enumerate(categories)]
