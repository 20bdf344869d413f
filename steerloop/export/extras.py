"""Packages that only some commands need."""

from importlib import import_module
from types import ModuleType

from steerloop import UserError


def extra(name: str, group: str = "export") -> ModuleType:
    """Import an optional package. Raises UserError naming the `group` that installs it: an
    artefact that its consumer's own loader has not read back is not handed out."""
    try:
        return import_module(name)
    except ImportError as e:
        raise UserError(f"this needs the package {name}, which is not installed here: "
                        f"pip install 'steerloop[{group}]'") from e
