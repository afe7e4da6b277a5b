"""Configuration: frozen models that refuse unknown keys and name the nearest valid one."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from sssflow.errors import UsageError
from sssflow.refusals import explain, refusals, source_of

C = TypeVar("C", bound="Config")
_MOST_BYTES = 4 << 20

_MERGE, _DATE = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which of a key that stands twice would keep the second in silence.

    What looks like a date stays text: no setting is one, and a name may be.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - as in the base class, which reads it
        first: [rule for rule in rules if rule[0] != _DATE]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As the base class, before `<<` brings in the keys of other sections."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            name = (key.tag, key.value)
            if name in lines:
                said = f"{key.value} a second time in its section; first in line {lines[name]}"
                raise yaml.MarkedYAMLError(problem=said, problem_mark=key.start_mark)
            lines[name] = key.start_mark.line + 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """As the base class; a value that Python refuses is told with its place.

        That is a number of thousands of digits, or one that its tag denies, as `!!int many`.
        """
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError) as error:
            said = f"a value that cannot be read ({error})"
            raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark) from None


class Config(BaseModel):
    """Base of every settings model: frozen, unknown keys refused, defaults validated."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

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
        raise explain(refusals(model, error, data), source) from None


def over_preset(
    model: type[Config], data: Mapping[str, Any], preset: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    """What was given for `model`, over the `values` that its preset fills in.

    Raises:
        ValueError: Every such key is given as `model` has it without the preset. A printed
            configuration gives every key: a preset that is changed there does nothing.
    """
    if all(data.get(key) == model.model_fields[key].default for key in values):
        raise ValueError(
            f"preset: {preset} has no effect, because all keys that it sets are given with "
            f"other values; delete their lines ({', '.join(values)})"
        )
    return {**values, **data}


def load_config(
    model: type[C],
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    options: Mapping[str, str] | None = None,
) -> C:
    """Read YAML (or JSON) from `path`, apply `key.sub=value` overrides, and validate.

    `path=None` starts from the defaults. Values of overrides are parsed as YAML. `options` are
    further overrides, each under the option that stands for it; they win, and errors name them.

    Raises:
        UsageError: The file is missing or is not a mapping, an override has no `=`, or a key or
            value does not fit.
    """
    data = {} if path is None else read_mapping(path)
    in_file = {} if path is None else {str(path): copy.deepcopy(data)}
    given = [("--set", text) for text in overrides] + list((options or {}).items())
    for _, text in given:
        _apply_override(data, text)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        refused = refusals(model, error, data)
        raise explain(refused, source_of(list(refused), given, in_file)) from None


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
        UsageError: The file is missing, not YAML, or holds no mapping, or one that holds itself.
    """
    try:
        loaded = _parsed(_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "The configuration file cannot be read.",
            where=path,
            found=error,
            action="Give the path of a YAML file; `sssflow train --print-config` shows one.",
        ) from None
    except yaml.YAMLError as error:
        raise _not_yaml(path, error) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UsageError(
            "The configuration must be a mapping of keys to values.",
            where=path,
            found=type(loaded).__name__,
        )
    return loaded


def _text(path: Path) -> str:
    """What a configuration file says; `<(command)` of a shell is one, so a pipe may be.

    Raises:
        OSError: It cannot be read, or is longer than any configuration: a device never ends.
        UnicodeDecodeError: It is not UTF-8.
    """
    with path.open("rb") as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise OSError(f"more than {_MOST_BYTES} bytes")
    return text.decode("utf-8")


def _parsed(text: str) -> Any:
    """What the one document in `text` says.

    Raises:
        YAMLError: It is not YAML, a key stands twice in a section, or a section holds itself.
    """
    loader = _Loader(text)
    try:
        return _unshared(loader.get_single_data())
    except RecursionError:
        raise yaml.YAMLError(
            "a section that holds itself (*name inside &name), or sections too deep in each other"
        ) from None
    finally:
        loader.dispose()


def _not_yaml(path: Path, error: yaml.YAMLError) -> UsageError:
    where, found = str(path), str(error).splitlines()[0]
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}"
        found = error.problem or found
    return UsageError(
        "The configuration is not valid YAML.",
        where=where,
        expected="`key: value` lines, each key once, parts of a section indented by spaces",
        found=found,
        action="Correct it there, or a line before; `sssflow train --print-config` shows the form.",
    )


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
        value = _parsed(raw)
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
