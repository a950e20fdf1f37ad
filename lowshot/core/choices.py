"""Choices by name: our options, and classes of the user.

A choice is a dataclass whose fields are its settings. `Registry` maps names to our classes. ``file.py:Class`` or
``module:Class`` names a class of the user, which must define the method that the registry requires. User code is
imported when a command names it, on the command line or in a YAML file, but never because an artifact does.
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from lowshot.core.errors import InputError

# Prefix of modules imported from user files, so that they shadow nothing.
_OWN = "lowshot_own_"
_HERE = Path(__file__)


@dataclass(frozen=True, eq=False)  # hashed by identity, because annotations contain it
class Registry:
    """The options of one kind: `classes` maps names to dataclasses of settings.

    A class that serves several names has a field `name`. A name of the form PREFIX:REST belongs to the class registered
    as "PREFIX:". `method` is the signature of the method that a user-defined class must have, or two signatures joined
    by " or ". Without `method`, only our classes are allowed.
    """

    kind: str
    classes: Mapping[str, type]
    method: str | None = None

    @property
    def names(self) -> str:
        """The available names, in words."""
        return ", ".join(self.classes) + (", or your own as file.py:Class" if self.method else "")

    def find(self, name: str) -> type:
        """Return the class of a choice. Raises InputError with the available names if there is none."""
        if self.is_ours(name):
            return self.classes[name] if name in self.classes else self.classes[_prefix(name)]
        if self.method and all(name.rpartition(":")):
            return self._own(name)
        meant = suggestion(name, self.classes) or "."
        raise InputError(f"no {self.kind} is called '{name}'{meant} Available: {self.names}")

    def is_ours(self, name: str) -> bool:
        """Whether a name is one of ours, for which no user code is imported."""
        return name in self.classes or (_prefix(name) in self.classes and name != _prefix(name))

    def name_of(self, choice: Any) -> str:
        """Return the name of a choice: its registered name, or the place of its class."""
        for name, known in self.classes.items():
            if type(choice) is known:
                return getattr(choice, "name", name)
        return own_name(type(choice))

    def _own(self, name: str) -> type:
        own, methods = own_class(name), [one.partition("(")[0] for one in self.method.split(" or ")]
        if getattr(own, "__module__", "") == "types":
            raise InputError(f"{name}: make_dataclass does not say in which file it stands; write it as a class")
        kind = f"{'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"
        if not (isinstance(own, type) and is_dataclass(own)):
            raise InputError(f"{name}: is not a dataclass, whose fields would be the settings of {kind}")
        if not any(method in vars(one) for method in methods for one in own.__mro__):  # every class has a __call__
            raise InputError(f"{name}: defines no {self.method}, which makes it {kind}")
        if any(one.name == "name" for one in fields(own)):
            raise InputError(f"{name}: has a setting 'name', which is the class itself here; give it another name")
        try:
            get_type_hints(own)
        except Exception as error:
            raise InputError(f"{name}: an annotation is none ({type(error).__name__}: {error})") from None
        return own


def _prefix(name: str) -> str:
    return f"{name.partition(':')[0]}:"


@dataclass(frozen=True)
class Several:
    """Any number of choices from a registry, in order, by name. User-defined classes go by their class name."""

    registry: Registry


def is_own(choice: Any) -> bool:
    """Whether the class of a choice is user-defined."""
    return type(choice).__module__.partition(".")[0] != "lowshot"


def own_name(own: type) -> str:
    """Return ``file.py:Class`` without the folder, or ``module:Class``. It is the same in every working directory."""
    module = own.__module__
    return f"{code_file(own).name if module.startswith(_OWN) else module}:{own.__qualname__}"


def code_file(own: type) -> Path:
    """Return the file that contains a user-defined class."""
    return Path(inspect.getfile(own))


def named_class(registry: Registry, name: str, code: Sequence[str], where: Path) -> type:
    """Return the class of a choice that made the artifact `where`; `code` lists the classes that may be imported.

    Raises InputError, with the option to add, for a user-defined class that `code` does not name.
    """
    if registry.is_ours(name) or ":" not in name:
        try:
            return registry.find(name)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    for given in code:
        own = own_class(given)
        if isinstance(own, type) and own_name(own) == name:
            return registry.find(given)
    raise InputError(f"{where}: was made with {name}, code of your own; --code {name} lets it be imported")


def own_class(name: str) -> Any:
    """Import what ``file.py:Class`` or ``module:Class`` names. Raises InputError, in one line, if that fails."""
    where, _, attribute = name.rpartition(":")
    module = _from_file(Path(where), name) if where.endswith(".py") else _imported(where, name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        meant = suggestion(attribute, [known for known in vars(module) if not known.startswith("_")])
        raise InputError(f"{name}: {where} defines no '{attribute}'{meant}") from None


def suggestion(name: str, known: Any) -> str:
    """Return ", did you mean 'X'?" for the closest of the `known` names, or nothing if none is close."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f", did you mean '{close[0]}'?" if close else ""


def _from_file(path: Path, name: str) -> Any:
    if not path.is_file():
        raise InputError(f"{name}: {path}: no such file")
    code = path.read_bytes()  # a changed file is another module
    module_name = f"{_OWN}{path.stem}_{zlib.crc32(bytes(path.resolve()) + code):x}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path.resolve())
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look up their annotations there
    try:
        _run(lambda: spec.loader.exec_module(module), name, path.resolve().parent)
    except InputError:
        del sys.modules[module_name]
        raise
    return module


def _imported(module: str, name: str) -> Any:
    return _run(lambda: importlib.import_module(module), name, Path.cwd())


def _run(load: Callable[[], Any], name: str, beside: Path) -> Any:
    """Call `load()` with the folder `beside` on the import path. Errors name the line of the user code."""
    sys.path.append(str(beside))
    try:
        return load()
    except (Exception, SystemExit) as error:
        files = [(Path(frame.filename), frame.lineno) for frame in inspect.trace()[1:]]
        lines = [f"{file.name}, line {n}: " for file, n in files if file.is_relative_to(beside) and file != _HERE]
        at = lines[-1] if lines else ""
        raise InputError(f"{name}: cannot be imported ({at}{type(error).__name__}: {error})") from None
    finally:
        with suppress(ValueError):  # the code may have removed it
            sys.path.remove(str(beside))
