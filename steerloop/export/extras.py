"""Packages that only exports need."""

from importlib import import_module
from types import ModuleType

from steerloop import UserError


def extra(name: str) -> ModuleType:
    """Import an optional package. Raises UserError naming what installs it: an artefact that its
    consumer's own loader has not read back is not handed out."""
    try:
        return import_module(name)
    except ImportError as e:
        raise UserError(f"this needs the package {name}, which is not installed here: "
                        "pip install 'steerloop[export]'") from e
