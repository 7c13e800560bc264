"""Labels of the images that a command generates, from the options of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinit.pipelines.generate import Pipeline

_FEW_CLASSES = 20  # so many are drawn where none is named


@dataclass(frozen=True)
class ImageOptions:
    """The options of `dinit generate` that choose images, as they were typed.

    Attributes:
        classes: numbers or names, with commas between them; None is all, where they are few.
        per_class: images of each class, at least 1.
        labels: in place of classes, one label an image, with commas between them.
        num_images: number of images without a class; in a set, of all classes in turn.
        labels_from: a file with one label an image, for a set.
        class_order: 'balanced', 'random' or 'none', for a set with num_images.
    """

    classes: Sequence[str] | None = None
    per_class: int = 10
    labels: str | None = None
    num_images: int | None = None
    labels_from: Path | None = None
    class_order: str = "balanced"

    def of_call(self, pipe: Pipeline) -> list[str | int | None]:
        """The label of every image, class by class.

        Raises:
            ValueError: options that contradict each other, or no classes named where there are many.
        """
        named = {"--classes": self.classes, "--labels": self.labels, "--num-images": self.num_images}
        given = [option for option, value in named.items() if value]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} contradict each other; give one of them")
        if self.per_class < 1:
            raise ValueError(f"--per-class must be at least 1, got {self.per_class}")
        if self.num_images is not None:
            if self.num_images < 1:
                raise ValueError(f"--num-images must be at least 1, got {self.num_images}")
            return [None] * self.num_images
        if pipe.num_classes == 0 and not given:
            return [None]
        if self.labels is not None:
            return list(split_names([self.labels], pipe.class_names))
        if not self.classes and pipe.num_classes > _FEW_CLASSES:
            raise ValueError(f"this pipeline has {pipe.num_classes} classes: name some with --classes, or give all")
        names: list[str | int] = [*split_names(self.classes or ["all"], pipe.class_names)]
        if names == ["all"]:
            names = list(range(pipe.num_classes))
        return [name for name in names for _ in range(self.per_class)]

    def of_set(self, pipe: Pipeline, seed: int) -> list[str | int | None]:
        """The label of every image of a set, each a function of its index and the seed.

        Raises:
            ValueError: options that contradict each other, or more images than labels.
        """
        from dinit.pipelines.outputs.set_files import read_labels
        from dinit.pipelines.outputs.sets import class_of

        if self.labels is not None and (self.labels_from is not None or self.num_images is not None):
            raise ValueError("--labels contradicts --labels-from and --num-images; give one of them")
        if self.labels_from is not None:
            listed = read_labels(self.labels_from)
            if self.num_images is not None and self.num_images > len(listed):
                count, path = self.num_images, self.labels_from
                raise ValueError(f"--num-images {count} is more than the {len(listed)} labels of {path}")
            return list(listed[: self.num_images])
        if self.num_images is None:
            return self.of_call(pipe)
        chosen: list[Any] = list(range(pipe.num_classes))
        if self.classes and list(self.classes) != ["all"]:
            chosen = split_names(self.classes, pipe.class_names)
        return [class_of(k, chosen, self.class_order, seed) for k in range(self.num_images)]


def split_names(given: Sequence[str], class_names: Sequence[str] | None) -> list[str]:
    """Names between commas; a text that is itself the name of a class is left whole. ValueError for blanks."""
    names: list[str] = []
    for text in given:
        names += [text] if text in (class_names or ()) else [part.strip() for part in text.split(",")]
    if not all(names):
        raise ValueError(f"labels are numbers or names between commas, as in 0,1,2; got {', '.join(given)!r}")
    return names
