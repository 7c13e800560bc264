"""Hub card and custom pipeline: files of a pipeline's folder that the Hub and diffusers' own entry read."""

from __future__ import annotations

from collections.abc import Sequence

CARD = "README.md"
CUSTOM_PIPELINE = "pipeline.py"

# Only the one class: diffusers refuses a file with two.
CUSTOM_PIPELINE_TEXT = """\
# Read by diffusers: DiffusionPipeline.from_pretrained(..., custom_pipeline=..., trust_remote_code=True)
from dinit.pipelines.generate import Pipeline  # noqa: F401
"""


def front_matter(num_classes: int, license: str | None = None) -> list[str]:
    """The lines of YAML at the head of a card.

    Args:
        num_classes: 0 for an unconditional pipeline.
        license: an identifier of the Hub, such as 'apache-2.0'; None leaves it out.
    """
    tags: Sequence[str] = ("diffusion", "class-conditional" if num_classes else "unconditional")
    return [
        "---",
        "library_name: dinit",
        # The Hub has no tag for class-conditional images, and lists DiT under this one.
        "pipeline_tag: unconditional-image-generation",
        *([] if license is None else [f"license: {license}"]),
        f"tags: [{', '.join(tags)}]",
        "---",
    ]


def card_text(backbone: str, num_classes: int) -> str:
    """A card that shows how to open the pipeline."""
    kind = f"{num_classes} classes" if num_classes else "unconditional"
    lines = [
        *front_matter(num_classes),
        f"# {backbone}, {kind}",
        "",
        "```python",
        "from dinit import Pipeline",
        "",
        'pipe = Pipeline.from_pretrained("FOLDER_OR_HUB_ID")',
        f"images = pipe({'[0]' if num_classes else 'num_images=1'}).images",
        "```",
    ]
    return "\n".join(lines) + "\n"
