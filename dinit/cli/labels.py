"""Labels of the images that a command generates, from the options of the command line."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dinit.cli.checks import check_there, check_word
from dinit.data.class_names import class_number, find_name
from dinit.data.sources import named

_FEW_CLASSES = 20  # so many are drawn where none is named
_ALL = ("all", "*")  # every class
_ORDERS = ("balanced", "random", "none")


class HasClasses(Protocol):
    """What has classes: a pipeline, or what is known of one before it is opened."""

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for an unconditional pipeline."""
        ...

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names by number; None where the classes have none."""
        ...


@dataclass(frozen=True)
class KnownClasses:
    """Number and names of the classes of a pipeline that is not opened yet."""

    num_classes: int
    class_names: Sequence[str] | None


@dataclass(frozen=True)
class ImageOptions:
    """The options of `dinit generate` that choose images, as they were typed.

    Attributes:
        classes: numbers or names, with commas between them; 'all' or '*' is every class; None is every class too,
            where they are few.
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

    def check(self, known: HasClasses | None, is_set: bool) -> None:
        """Whether the options fit together and, where the classes are known, name classes; reads no labels file.

        Raises:
            ValueError: options that contradict each other, numbers out of range, unknown classes.
            FileNotFoundError: there is no file of labels.
        """
        check_word("class order", self.class_order, _ORDERS)
        if self.labels_from is not None:
            check_there(self.labels_from, "file of labels")
        if known is None:
            return
        in_turn = is_set and (self.labels_from is not None or self.num_images is not None)
        labels = self._chosen(known) if in_turn else self.of_call(known)
        for label in dict.fromkeys(labels):
            class_number(label, known.num_classes, known.class_names)

    def of_call(self, pipe: HasClasses) -> list[str | int | None]:
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
        return [name for name in self._chosen(pipe) for _ in range(self.per_class)]

    def of_set(self, pipe: HasClasses, seed: int) -> list[str | int | None]:
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
            with named(self.labels_from):
                for label in dict.fromkeys(listed):
                    class_number(label, pipe.num_classes, pipe.class_names)
            if self.num_images is not None and self.num_images > len(listed):
                count, path = self.num_images, self.labels_from
                raise ValueError(f"--num-images {count} is more than the {len(listed)} labels of {path}")
            return list(listed[: self.num_images])
        if self.num_images is None:
            return self.of_call(pipe)
        chosen = self._chosen(pipe)
        return [class_of(k, chosen, self.class_order, seed) for k in range(self.num_images)]

    def _chosen(self, pipe: HasClasses) -> list[Any]:
        """Numbers or names of the classes of --classes. ValueError for 'all' where a class is called so."""
        if not self.classes:
            return list(range(pipe.num_classes))
        given = list(self.classes)
        if len(given) != 1 or given[0] not in _ALL:
            return list(split_names(given, pipe.class_names))
        (word,) = given
        if find_name(word, pipe.class_names or ()) is not None:
            other = next(one for one in _ALL if one != word)
            raise ValueError(
                f"{word!r} is every class, and a class of this pipeline is called {word!r} too: quote the name for "
                f"that class, --classes '\"{word}\"', or write --classes '{other}' for every class"
            )
        return list(range(pipe.num_classes))


def split_names(given: Sequence[str], class_names: Sequence[str] | None) -> list[str]:
    """Names between commas, quoted as in CSV where a name has a comma; a text that is itself a name is left whole.

    Args:
        given: Texts of the command line.
        class_names: Of the pipeline, by number; None where it has none.

    Raises:
        ValueError: Blanks, an open quote, or a text that is a name and several names too.
    """
    known = class_names or ()
    names: list[str] = []
    for text in given:
        parts = _parts(text, known)
        if find_name(text, known) is None:
            names += parts
            continue
        if len(parts) > 1 and all(find_name(part, known) is not None for part in parts):
            apart = ",".join(f'"{part}"' for part in parts)
            raise ValueError(
                f"{text!r} is the name of one class, and of {len(parts)} with commas between them: quote the "
                f"names, '\"{text}\"' or '{apart}'"
            )
        names.append(text)
    if not all(names):
        raise ValueError(f"labels are numbers or names between commas, as in 0,1,2; got {', '.join(given)!r}")
    return names


def _parts(text: str, known: Sequence[str]) -> list[str]:
    """What stands between commas, without quotes. ValueError for an open quote, or part of a name with a comma."""
    try:
        parts = next(csv.reader([text], skipinitialspace=True, strict=True)) or [""]
    except csv.Error as error:
        raise ValueError(f"the labels {text!r} cannot be read as names between commas: {error}") from error
    parts = [part if part in known else part.strip() for part in parts]
    whole = [name for name in known if "," in name]
    for part in parts:
        cut = next((name for name in whole if part and part in [one.strip() for one in name.split(",")]), None)
        if cut is not None and find_name(part, known) is None and find_name(text, known) is None:
            raise ValueError(f"{part!r} is a part of the name {cut!r}, which has a comma: quote it, '\"{cut}\"'")
    return parts
