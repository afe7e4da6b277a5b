"""Configuration: frozen models that refuse unknown keys and name the nearest valid one."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from sssflow.errors import UsageError

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of every settings model: frozen, unknown keys refused, defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _sections_given_in_part_keep_their_default(cls, data: Any) -> Any:
        """`train: {steps: 5}` changes the steps of this model's default section, nothing else.

        Without this, keys that the default section sets beside its class's defaults would fall
        back to those of the class.
        """
        if not isinstance(data, Mapping):
            return data
        given = dict(data)
        for name, field in cls.model_fields.items():
            part = given.get(name)
            if isinstance(field.default, BaseModel) and isinstance(part, Mapping):
                given[name] = _over(field.default.model_dump(exclude_unset=True), part)
        return given

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON form: equal settings give equal digests."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def parse_config(model: type[C], data: Mapping[str, Any], *, source: str = "") -> C:
    """Build `model` from plain data.

    Raises:
        UsageError: A key is unknown (the nearest valid name is given) or a value does not fit.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise _explain(model, error, source) from None


def load_config(model: type[C], path: Path | None, overrides: Sequence[str] = ()) -> C:
    """Read YAML (or JSON) from `path`, apply `key.sub=value` overrides, and validate.

    `path=None` starts from the defaults. Values of overrides are parsed as YAML.

    Raises:
        UsageError: The file is missing or is not a mapping, an override has no `=`, or a key or
            value does not fit.
    """
    data = {} if path is None else read_mapping(path)
    for text in overrides:
        _apply_override(data, text)
    return parse_config(model, data, source=str(path or "--set"))


def override_config(config: C, overrides: Sequence[str]) -> C:
    """A copy of `config` with `key.sub=value` texts applied; later ones win.

    Raises:
        UsageError: An override has no `=`, or a key or value does not fit.
    """
    data = config.model_dump(mode="json")
    for text in overrides:
        _apply_override(data, text)
    return parse_config(type(config), data, source="--set")


def dump_yaml(config: Config) -> str:
    """The configuration as YAML text that `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; empty for an empty file.

    Raises:
        UsageError: The file is missing, not YAML, or holds no mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "The configuration file cannot be read.",
            where=path,
            found=error,
            action="Give the path of a YAML file; `sssflow train --print-config` shows one.",
        ) from None
    except yaml.YAMLError as error:
        raise UsageError(
            "The configuration is not valid YAML.", where=path, found=str(error).replace("\n", " ")
        ) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UsageError(
            "The configuration must be a mapping of keys to values.",
            where=path,
            found=type(loaded).__name__,
        )
    return {key: _unshared(value) for key, value in loaded.items()}


def _unshared(value: Any) -> Any:
    """A copy without common parts: an override of one place must not change its YAML aliases."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings as one, part by part; `above` wins."""
    joined = dict(below)
    for key, value in above.items():
        old = joined.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _over(old, value)
        joined[key] = value
    return joined


def _apply_override(data: dict[str, Any], text: str) -> None:
    key, separator, raw = text.partition("=")
    if not separator or not key:
        raise UsageError(
            "A setting must have the form key=value.",
            found=text,
            action="Write for example --set train.steps=500.",
        )
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        value = raw
    *parents, last = key.split(".")
    node = data
    for name in parents:
        child = node.setdefault(name, {})
        if not isinstance(child, dict):
            raise UsageError("A setting goes below a plain value.", where=key, found=child)
        node = child
    node[last] = value


def _explain(model: type[BaseModel], error: ValidationError, source: str) -> UsageError:
    lines = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{path}: unknown key{_nearest(model, item['loc'])}")
        else:
            lines.append(
                f"{path or '(top level)'}: {item['msg']} (found {item.get('input')!r:.80})"
            )
    return UsageError(
        "The configuration is not valid.",
        where=source,
        found="; ".join(lines),
        action="Correct the key or value; --print-config shows every key with its default.",
    )


def _nearest(model: type[BaseModel], location: Sequence[str | int]) -> str:
    names = _names_at(model, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.4)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid keys are {', '.join(sorted(names))}" if names else ""


def _names_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    current: list[type[BaseModel]] = [model]
    for part in location:
        found: list[type[BaseModel]] = []
        for candidate in current:
            field = candidate.model_fields.get(str(part))
            if field is not None:
                found.extend(_models_in(field.annotation))
        # A discriminated union puts its tag into the location: it names no field.
        current = found or current
    return [name for candidate in current for name in candidate.model_fields]


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType) or get_args(annotation):
        return [found for part in get_args(annotation) for found in _models_in(part)]
    return []
