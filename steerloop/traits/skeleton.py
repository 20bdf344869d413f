"""The skeleton of a pack: every file with a comment that says what belongs there."""

from pathlib import Path

from steerloop import UserError
from steerloop.runfolder.files import write_whole

FILES = {
    "trait.toml": """\
# The trait: what it is called, its two poles, and texts that make a model speak as either.
name = "{name}"
up = "the trait"        # for tables and maps; two moral foundations, or two names of your own
down = "its opposite"

# Opposites in one frame: alike in words and length, one axis, no negation. Eight are good.
positive = [
    "You are someone who shows the trait ...",
]
negative = [
    "You are someone who shows its opposite ...",
]

# Files that are not in this folder, from here or from the package:
# [files]
# vignettes = "data/vignettes.jsonl"    # for moral foundations: acts with labels, and why they
# reasons = "data/reasons.toml"         # are wrong
""",
    "prompts.txt": """\
# Prompts to train on, one a line, 40 at least: where a model with the trait answers otherwise.
""",
    "contrast.jsonl": """\
{{"prompt": "A prompt that is not trained on. 60 at least.", "positive": ["An answer that shows \
the trait.", "Another, in other words."], "negative": ["An answer that shows its opposite, as \
long and as good.", "Another."]}}
""",
    "CARD.md": """\
# {name}

What the trait is, and what it is not. How the texts were written. What else a shift could mean.
""",
}


def begin(folder: Path) -> Path:
    """Write the skeleton into a new folder. Raises UserError where there is something already."""
    if folder.exists():
        raise UserError(f"{folder} is there already: choose another name")
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        filled = text.format(name=folder.name)
        write_whole(folder / name, lambda path, x=filled: path.write_text(x, encoding="utf-8"))
    return folder
