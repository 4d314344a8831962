"""What the command line names: a ``module:attribute``, found and looked at before it is used."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any


class WrongUse(Exception):
    """The command cannot do what it was asked to; says what, and what to do."""


def import_from_here() -> None:
    """Let modules of the working directory be imported, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def split(what: str, named: str) -> tuple[str, str]:
    """Module and attribute; raises `WrongUse` where one is missing."""
    module, colon, attribute = named.partition(":")
    if not module or not colon or not attribute:
        raise WrongUse(f"{what} {named!r} is not of the form module:name, such as shop.app:app")
    return module, attribute


def check_there(what: str, named: str) -> None:
    """Raise `WrongUse` if the module is not there; it is not imported."""
    module, _ = split(what, named)
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise WrongUse(_not_found(what, module))


def load(what: str, named: str) -> Any:
    """The object; raises `WrongUse` where there is none, and what importing its module raises."""
    module, attribute = split(what, named)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise WrongUse(_not_found(what, module)) from None
        raise  # the module is there, and what it imports is not
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise WrongUse(f"{what}: {module} has no {attribute!r}; look at the name after the ':'")
        found = getattr(found, name)
    return found


def load_function(what: str, named: str) -> Any:
    """Something to call with one argument; raises as `load`."""
    found = load(what, named)
    if not callable(found) or not _takes(found, 1):
        raise WrongUse(f"{what} {named} is no function of one argument")
    return found


def load_app(named: str, *, factory: bool) -> Any:
    """An ASGI app; raises as `load`."""
    found = load("the app", named)
    if factory:
        if not callable(found) or not _takes(found, 0):
            raise WrongUse(f"{named} is no function without arguments; leave --factory away")
        found = found()
    elif inspect.isroutine(found) and _takes(found, 0) and not _takes(found, 3):
        raise WrongUse(
            f"{named} is a function without arguments; if it makes the app, add --factory"
        )
    if not callable(found) or not _takes(found, 3):
        raise WrongUse(
            f"{named} is not an ASGI app but {type(found).__name__}; name the FastAPI or Starlette "
            "object, or with --factory the function that makes it"
        )
    return found


def _takes(function: Any, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # of builtins that have no signature
        return True
    return True


def _not_found(what: str, module: str) -> str:
    return f"{what}: there is no module {module}; run this where `import {module}` works"
