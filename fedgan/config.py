"""YAML and command-line overrides to a typed `Experiment`, and back."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedgan.errors import SharedError, UserError, did_you_mean, plain_words
from fedgan.settings import Component, Experiment

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

FREE_FORM = "init_args"
"""What only the component knows: checked against its own signature when it is built."""


def parser(**kwargs: Any) -> ArgumentParser:
    """A jsonargparse parser of the whole vocabulary, with a help text for every key."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    made = ArgumentParser(exit_on_error=False, **kwargs)
    made.add_class_arguments(Experiment)
    return made


@functools.cache
def _parser() -> ArgumentParser:
    """Made once: a grid reads hundreds of configs, and making it takes longer than parsing one."""
    return parser()


def from_dict(
    values: Mapping[str, Any], overrides: Sequence[str] = (), where: str = ""
) -> Experiment:
    """A typed experiment from nested values and overrides such as `--federation.rounds=5`.

    Raises `UserError` for an unknown key (with the nearest known one) or a value of a wrong type;
    `where` names the file in the message.
    """
    from jsonargparse import ArgumentError

    prefix = f"{where}: " if where else ""
    for key, value in _dotted(values):
        _check_known(key, prefix, value)
    for argument in overrides:
        if not argument.startswith("--"):
            raise UserError(f"unexpected argument '{argument}'; overrides are --key=value")
        _check_known(argument.removeprefix("--").split("=", 1)[0], "--")
    made = _parser()
    try:
        parsed = made.parse_object(_named(_without_stale_arguments(values, overrides)))
        parsed = made.parse_args(list(overrides), namespace=parsed)
    except ArgumentError as error:
        raise UserError(prefix + plain_words(str(error))) from None
    experiment = Experiment(**made.instantiate_classes(parsed).as_dict())
    _refuse_nulls(experiment, prefix)
    return experiment


def about_data(name: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a config file, of a run directory, or one about what `data.name` can be, or
    a .npz file of images; nowhere to run."""
    if Path(name, "config.yaml").is_file():
        name = Path(name, "config.yaml")
    if Path(name).suffix == ".npz":
        experiment = from_dict({"data": {"name": "npz", "path": str(name)}}, overrides)
    elif str(name).endswith((".yaml", ".yml")):
        experiment = read(name, overrides)
    else:
        experiment = from_dict({"data": {"name": str(name)}}, overrides)
    experiment.run_dir = None
    return experiment


def read(path: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in a YAML file.

    A name that is no file is looked up among the configs that ship with fedgan, so that
    `quickstart.yaml` works from any folder. Raises `UserError` as `from_dict` does, and for a file
    that is missing or is not YAML.
    """
    found = locate(Path(path))
    values = read_mapping(found, str(path))
    try:
        experiment = from_dict(values, overrides, str(path))
    except UserError as error:
        raise SharedError(str(error)) from None
    if experiment.run_dir is None:
        experiment.run_dir = f"runs/{found.stem}"
    look_beside(found, experiment)
    return experiment


def look_beside(path: Path, experiment: Experiment) -> None:
    """Lets class paths be looked up in the folder of a file too."""
    folder = str(path.resolve().parent)
    if folder not in experiment.python_path:
        experiment.python_path.append(folder)


def read_mapping(path: Path, name: str, what: str = "config") -> dict[str, Any]:
    """The keys and values of a YAML file; `name` is what messages call it. Raises `UserError` for
    one that cannot be read, or holds something else."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        json.dumps(values, default=str, skipkeys=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not YAML ({' '.join(str(error).split())})") from None
    except ValueError:
        raise UserError(f"{name}: an alias in it stands for what it is part of") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{name}: a {what} is a mapping of keys, this is a {type(values).__name__}")
    return values


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which PyYAML would silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen: set[str] = set()
        for key in keys:
            if key.value in seen and key.value != "<<":
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} stands there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return node


def locate(path: Path) -> Path:
    """`path` itself, or the config of that name that ships with fedgan."""
    return _locate(path, "configs", shipped_configs(), "config")


def locate_grid(path: Path) -> Path:
    """`path` itself, or the grid of that name that ships with fedgan."""
    return _locate(path, "configs/grids", shipped_grids(), "grid")


def _locate(path: Path, folder: str, shipped: dict[str, Path], what: str) -> Path:
    if path.is_file():
        return path
    for name in (path.name, f"{path.name}.yaml"):
        if name in shipped and str(path) in (name, path.name, f"{folder}/{name}"):
            return shipped[name]
    if (path / "config.yaml").is_file():
        raise UserError(f"{path}: a run, no {what}; `fedgan resume {path}` goes on with it")
    others, command = (
        (shipped_grids(), "grid") if what == "config" else (shipped_configs(), "train")
    )
    if path.name in others or f"{path.name}.yaml" in others:
        raise UserError(f"{path}: no such {what}, but `fedgan {command} {path.stem}` knows it")
    names = [Path(name).stem for name in shipped]  # all end alike, and that is no likeness
    raise UserError(f"{path}: no such {what}{did_you_mean(path.stem, names)}")


@functools.cache
def shipped_configs() -> dict[str, Path]:
    """The configs that come with fedgan, by file name: in the wheel, or beside the package."""
    return _shipped("*.yaml")


@functools.cache
def shipped_grids() -> dict[str, Path]:
    """The grids that come with fedgan, likewise."""
    return _shipped("grids/*.yaml")


def _shipped(pattern: str) -> dict[str, Path]:
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return {path.name: path for path in sorted(folder.glob(pattern))}
    return {}


def dump(experiment: Experiment) -> str:
    """The experiment as YAML, every key written out; `read` gives the same experiment back."""
    plain = _plain(dataclasses.asdict(experiment))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None)


def _plain(value: Any) -> Any:
    """Only what safe YAML knows: tuples become lists."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


@functools.cache
def known_keys() -> frozenset[str]:
    """Every dotted key of the vocabulary, groups included."""

    def walk(cls: type[Any], prefix: str) -> list[str]:
        keys = []
        for item in dataclasses.fields(cls):
            key = prefix + item.name
            keys.append(key)
            made = item.default_factory if item.default_factory is not dataclasses.MISSING else None
            if dataclasses.is_dataclass(made):
                keys += walk(made, f"{key}.")  # type: ignore[arg-type]
            elif re.match(r"(?!list|dict).*dict\[str, Any\]", str(item.type)):
                keys += walk(Component, f"{key}.")
        return keys

    return frozenset(walk(Experiment, ""))


def _dotted(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    keys: list[tuple[str, Any]] = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        keys.append((key, value))
        if isinstance(value, Mapping) and name != FREE_FORM:
            keys += _dotted(value, f"{key}.")
    return keys


def _check_known(key: str, prefix: str, value: Any = None) -> None:
    base = re.sub(rf"\.{FREE_FORM}\..*$", f".{FREE_FORM}", key)
    known = known_keys()
    group, _, name = base.rpartition(".")
    if base not in known:
        siblings = {k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == group}
        if siblings:
            raise UserError(f"{prefix}{key}: unknown key{did_you_mean(name, siblings)}")
        groups = {k for k in known if "." not in k}
        raise UserError(f"{prefix}{key}: unknown key{did_you_mean(group, groups)}")
    is_group = "." not in base and any(k.startswith(f"{base}.") for k in known)
    if is_group and prefix != "--" and not isinstance(value, Mapping):
        raise UserError(f"{prefix}{key}: holds keys of its own, not {value!r}")


def _without_stale_arguments(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` less the init_args of each component that an override replaces by another: those of
    the one in the file mean nothing to the new one."""
    fresh = dict(values)
    for override in overrides:
        found = re.fullmatch(r"--(\w+)\.(name|class_path)=(.*)", override)
        if found and isinstance(fresh.get(found[1]), Mapping):
            group = dict(fresh[found[1]])
            if group.get(found[2]) != found[3]:
                group.pop(FREE_FORM, None)
                if found[2] == "name":
                    group.pop("class_path", None)
            fresh[found[1]] = group
    return fresh


def _named(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with a null `name` in each component that has a class path and no name: without
    it jsonargparse would take the class path for that of the settings themselves."""
    return {
        key: {"name": None, **group} if _has_class_path(group) else group
        for key, group in values.items()
    }


def _has_class_path(group: Any) -> bool:
    return isinstance(group, Mapping) and "class_path" in group


def _refuse_nulls(part: Any, prefix: str, path: str = "") -> None:
    """jsonargparse lets null through for any type."""
    for item in dataclasses.fields(part):
        key, value = f"{path}{item.name}", getattr(part, item.name)
        if value is None and "Optional" not in str(item.type):
            raise UserError(f"{prefix}{key}: null is not a value for {item.type}")
        if dataclasses.is_dataclass(value):
            _refuse_nulls(value, prefix, f"{key}.")
