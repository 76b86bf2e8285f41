"""Components (source, model, loss, attack, defence, encoder) by short name or by class path.

A room is a package such as `fedgan.attacks`. A public class in it that derives from the room's base
class is a component; its short name is its class attribute `name`. There is no registry: a new file
in the room is a new name in the YAML. `class_path: my_module.MyAttack` takes a class from anywhere
on the Python path, the working directory and the config's directory included.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from fedgan.errors import UserError, did_you_mean, plain_words
from fedgan.settings import Component

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

T = TypeVar("T")


def available(room: str, base: type[T]) -> dict[str, type[T]]:
    """Every component of a room (`"fedgan.attacks"`) by short name.

    Raises `RuntimeError` where two classes claim one name, which is a mistake in fedgan itself.
    """
    found: dict[str, type[T]] = {}
    package = importlib.import_module(room)
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{room}.{info.name}")
        for cls in vars(module).values():
            # not inspect.isclass, which takes dict[str, int] for a class on Python 3.10
            if not (issubclass(type(cls), type) and issubclass(cls, base)):
                continue
            if cls.__module__ != module.__name__ or inspect.isabstract(cls):
                continue
            name = vars(cls).get("name")
            if not isinstance(name, str):
                continue
            if name in found:
                raise RuntimeError(f"{room}: '{name}' is claimed by {found[name]} and {cls}")
            found[name] = cls
    return found


def find(key: str, choice: Component, room: str, base: type[T]) -> type[T]:
    """The class that `choice` names. `key` is where it stands in the config, for the error.

    Raises `UserError` for an unknown name, a class path that does not import, or a class of the
    wrong kind.
    """
    if choice.class_path is not None:
        return _from_class_path(f"{key}.class_path", choice.class_path, base)
    known = available(room, base)
    if choice.name not in known:
        raise UserError(
            f"{key}.name: unknown '{choice.name}'{did_you_mean(str(choice.name), known)}"
        )
    return known[choice.name]


def build(key: str, choice: Component, cls: type[T]) -> T:
    """An instance of `cls` from `choice.init_args`, which are checked against its signature.

    Fills `choice.init_args` with the defaults, so that the config written to the run directory
    holds every value that was in force. Raises `UserError` for unknown or ill-typed arguments.
    """
    from jsonargparse import ArgumentError

    parser, names = _parser(cls)  # type: ignore[arg-type]
    for name in choice.init_args:
        if name not in names:
            allowed = did_you_mean(name, names) if names else "; it takes none"
            raise UserError(f"{key}.init_args.{name}: unknown argument{allowed}")
    _refuse_nulls(key, choice.init_args, cls)
    try:
        parsed = parser.parse_object(choice.init_args)
    except ArgumentError as error:
        line = plain_words(str(error))
        dot = "." if line.partition(":")[0] in names else ": "
        raise UserError(f"{key}.init_args{dot}{line}") from None
    arguments = parser.instantiate_classes(parsed).as_dict()
    choice.init_args = {name: parsed[name] for name in names}
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None


@functools.lru_cache(maxsize=256)
def _parser(cls: type[Any]) -> tuple[ArgumentParser, list[str]]:
    """A parser of a class's arguments, and their names; made once, since a grid builds the same
    parts hundreds of times, and making it takes longer than all else."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    return parser, parser.add_class_arguments(cls)


def _refuse_nulls(key: str, init_args: dict[str, Any], cls: type[Any]) -> None:
    """jsonargparse lets null through for any type; here only where it is the default or allowed."""
    try:
        hints = get_type_hints(cls.__init__)
    except NameError:  # names that a user's file imports for type checkers only
        return
    parameters = inspect.signature(cls).parameters
    for name, value in init_args.items():
        if value is not None or name not in hints or name not in parameters:
            continue
        hint = hints[name]
        choices = get_args(hint)
        allowed = hint is Any or type(None) in choices or None in choices
        if not allowed and parameters[name].default is not None:
            raise UserError(f"{key}.init_args.{name}: null is not a value for it")


def one_line(error: Exception) -> str:
    """The text of an exception on one line."""
    return " ".join(str(error).split())


def _from_class_path(key: str, path: str, base: type[T]) -> type[T]:
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"{key}: '{path}' is not of the form module.ClassName")
    try:
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's own file may raise anything while it is imported
        why = one_line(error) or type(error).__name__
        raise UserError(f"{key}: cannot import '{path}' ({why})") from None
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise UserError(f"{key}: '{path}' is not a subclass of {base.__module__}.{base.__name__}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise UserError(f"{key}: '{path}' lacks {missing}")
    if not hasattr(cls, "name"):
        cls.name = name  # type: ignore[attr-defined]
    return cls


@contextmanager
def python_path(*folders: Path) -> Iterator[None]:
    """Adds `folders` to the import path while a config's class paths are looked up: at its end, so
    that a file called random.py in the working directory hides nobody else's."""
    before = list(sys.path)
    sys.path += [str(folder.resolve()) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def describe(cls: type[Any]) -> str:
    """First line of a component's docstring, for lists of what there is."""
    return (inspect.getdoc(cls) or "").split("\n", 1)[0]
