"""Recipes as text: YAML in, problems out in words.

YAML is version 1.2: `1e-3` is a number, `on` is a string.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rle_tf.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict:
    """What a YAML file of sections holds, with `section.key=value` overrides applied.

    Raises:
        ConfigError: if the file or an override is no such thing.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{path}: {reason}; expected a YAML recipe (see configs/)") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error}; expected a YAML recipe") from None
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {values!r:.80}; expected sections of keys and values")
    for override in overrides:
        _apply(values, override)
    return values


def validated(model: type[Model], values: dict, where: str) -> Model:
    """The values as a model of pydantic's.

    Raises:
        ConfigError: a line for each problem, which starts with `where` and names the key, what was
            found and what was expected.
    """
    try:
        # Through JSON, where pydantic's strict mode takes a list for a tuple. What YAML has and
        # JSON has not (a date, say) goes as the text that stood there.
        text = json.dumps(values, default=str)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: not a tree of keys and values: {error}") from None
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        # A default that is made of another value, which is wrong itself, is no news.
        problems = [
            _explain(model, problem)
            for problem in error.errors()
            if problem["type"] != "default_factory_not_called"
        ]
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems)) from None


def _parse_yaml(text: str, where: str):
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{where}: not YAML: {line}{error.problem}") from None
    except YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from None


def _apply(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last or "" in sections:
        raise ConfigError(f"--set {override}: expected SECTION.KEY=VALUE")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: '{section}' is {values!r:.80}, not a section")
    values[last] = _parse_yaml(text, f"--set {override}")


def _explain(model: type[BaseModel], problem: dict) -> str:
    """What pydantic found wrong, in a line."""
    name, valid = _locate(model, problem["loc"])
    found = json.dumps(problem["input"])
    if len(found) > 100:
        found = found[:100] + "..."
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            key = name.split(".")[-1]
            close = difflib.get_close_matches(key, valid, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            return f"{name}: unknown key; {hint}valid keys: {', '.join(valid)}"
        case "missing":
            return f"{name}: missing; expected a value"
        case "union_tag_not_found":
            return f"{name}.kind: missing; expected a value"
        case "union_tag_invalid":
            tag, expected = context["tag"], context["expected_tags"]
            return f"{name}.kind: found {json.dumps(tag)}; expected one of {expected}"
        case "value_error" if not name:  # of the whole, which says itself where
            return str(context["error"])
        case "value_error":
            return f"{name}: found {found}; {context['error']}"
        case _:
            message = problem["msg"].replace("Input should be", "expected")
            return f"{name}: found {found}; {message[0].lower()}{message[1:]}"


def _locate(model: type[BaseModel], location: tuple[str | int, ...]) -> tuple[str, list[str]]:
    """The dotted name of a pydantic location, and the keys of the section that it is in."""
    sections, names, keys = [model], [], []
    for part in location:
        if len(sections) > 1:  # the kind of a union's member: no key of the file
            sections = [s for s in sections if s.model_fields["kind"].default == part]
            continue
        names.append(str(part))
        fields = sections[0].model_fields if sections else {}
        keys = list(fields)
        sections = _sections(fields[part].annotation) if part in fields else []
    return ".".join(names), keys


def _sections(annotation: type) -> list[type[BaseModel]]:
    """A section, the sections of a union, or nothing where a field holds values."""
    options = get_args(annotation) or (annotation,)
    options = [get_args(o)[0] if get_origin(o) is Annotated else o for o in options]
    return [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
