"""Choices by name: what there is of a kind, and classes of the user's own.

A choice is a dataclass whose fields are its settings. `Registry` knows ours by name; ``file.py:Class`` or
``module:Class`` names one of the user's own, which must define the method that the registry asks for. User code is
imported when a command names it, on its line or in its YAML file, and never because an artifact does.
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

# Modules of files that are no part of a package get names of their own, so that they shadow nothing.
_OWN = "lowshot_own_"
_HERE = Path(__file__)


@dataclass(frozen=True, eq=False)  # hashed by identity: it stands in annotations
class Registry:
    """What there is of a kind: `classes` maps names to dataclasses of settings.

    A class that serves several names has a field `name`. A name of the form PREFIX:REST belongs to the class under
    "PREFIX:". `method` is what a class of the user's own must define, as its signature; one of two, joined by " or ".
    Without it there are none but ours.
    """

    kind: str
    classes: Mapping[str, type]
    method: str | None = None

    @property
    def names(self) -> str:
        """What there is, in words."""
        return ", ".join(self.classes) + (", or your own as file.py:Class" if self.method else "")

    def find(self, name: str) -> type:
        """The class of a choice; InputError, with all names there are, for one that does not exist."""
        if self.is_ours(name):
            return self.classes[name] if name in self.classes else self.classes[_prefix(name)]
        if self.method and all(name.rpartition(":")):
            return self._own(name)
        meant = suggestion(name, self.classes)
        raise InputError(f"no {self.kind} is called '{name}'{meant}; there are {self.names}")

    def is_ours(self, name: str) -> bool:
        """Whether a name is one of ours, by which nothing of the user's is imported."""
        return name in self.classes or (_prefix(name) in self.classes and name != _prefix(name))

    def name_of(self, choice: Any) -> str:
        """The name of a choice: that under which it is registered, or where its class comes from."""
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
    """Any number of choices from a registry, in order, by name; the user's own by the name of their class."""

    registry: Registry


def is_own(choice: Any) -> bool:
    """Whether the class of a choice is the user's."""
    return type(choice).__module__.partition(".")[0] != "lowshot"


def own_name(own: type) -> str:
    """``file.py:Class`` without the folder, or ``module:Class``: the same wherever the command is run."""
    module = own.__module__
    return f"{code_file(own).name if module.startswith(_OWN) else module}:{own.__qualname__}"


def code_file(own: type) -> Path:
    """The file that a class of the user's own stands in."""
    return Path(inspect.getfile(own))


def named_class(registry: Registry, name: str, code: Sequence[str], where: Path) -> type:
    """The class of a choice that the artifact `where` was made with; `code` names what may be imported for it.

    Raises InputError, with the words to type, for a class of the user's own that `code` does not name.
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
    """Import what ``file.py:Class`` or ``module:Class`` names; InputError, in one line, if that cannot be done."""
    where, _, attribute = name.rpartition(":")
    module = _from_file(Path(where), name) if where.endswith(".py") else _imported(where, name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        meant = suggestion(attribute, [known for known in vars(module) if not known.startswith("_")])
        raise InputError(f"{name}: {where} defines no '{attribute}'{meant}") from None


def suggestion(name: str, known: Any) -> str:
    """ ", did you mean X?" for the closest of the names there are; nothing if none is close."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f", did you mean '{close[0]}'?" if close else ""


def _from_file(path: Path, name: str) -> Any:
    if not path.is_file():
        raise InputError(f"{name}: {path}: no such file")
    code = path.read_bytes()  # a file that has changed since is another module
    module_name = f"{_OWN}{path.stem}_{zlib.crc32(bytes(path.resolve()) + code):x}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path.resolve())
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their annotations up there
    try:
        _run(lambda: spec.loader.exec_module(module), name, path.resolve().parent)
    except InputError:
        del sys.modules[module_name]
        raise
    return module


def _imported(module: str, name: str) -> Any:
    return _run(lambda: importlib.import_module(module), name, Path.cwd())


def _run(load: Callable[[], Any], name: str, beside: Path) -> Any:
    """`load()`, with the modules in the folder `beside` to import from; an error names the line of the user's code."""
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
