"""Words on a configuration that was refused: each key as it was typed, why, and what was meant."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sssflow.errors import UsageError

Key = tuple[str, ...]

_NAMED_AT_MOST = 3
_ALIKE = 0.7
"""Least likeness of a slip to a name: `batch` shares 0.62 with `unimatch`."""


def explain(refused: Mapping[Key, str], source: str) -> UsageError:
    """The error that names every refused key with its reason; `source` says who gave them."""
    lines = [f"{'.'.join(key) or '(top level)'}: {why}" for key, why in refused.items()]
    return UsageError(
        "The configuration is not valid.",
        where=source,
        found="; ".join(lines),
        action="Correct the key or value; --print-config shows every key with its default.",
    )


def refusals(model: type[BaseModel], error: ValidationError, data: object) -> dict[Key, str]:
    """Each refused key, once, and why; pydantic reports each member of a union by itself."""
    found: dict[Key, list[ErrorDetails]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_written(model, item["loc"], data), []).append(item)
    return {
        key: _why(model, key, items)
        for key, items in found.items()
        # A list is too short for pydantic where one of its values was refused.
        if items[0]["type"] != "too_short" or not any(_is_below(key, other) for other in found)
    }


def _is_below(key: Key, other: Key) -> bool:
    return len(other) > len(key) and other[: len(key)] == key


def _written(model: type[BaseModel], location: Sequence[str | int], data: object) -> Key:
    """The part of pydantic's location that a person wrote: without the tags of unions."""
    key: list[str] = []
    for i, part in enumerate(location):
        if isinstance(data, Mapping) and part in data:
            data = data[part]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif part not in _names_at(model, location[:i]):
            continue
        else:  # a key that is missing
            data = None
        key.append(str(part))
    return tuple(key)


def _why(model: type[BaseModel], key: Key, items: Sequence[ErrorDetails]) -> str:
    first = items[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key{_nearest(model, key, first['loc'])}"
    if first["type"] == "missing":
        return _missing(items)
    said = list(dict.fromkeys(_said(model, item) for item in items))
    if first["type"] == "value_error" and isinstance(first.get("input"), Mapping):
        return said[0]  # a rule of a whole section, which says what it found
    if len(said) > 1:
        # "Input should be a valid integer, unable to parse …": the half that says what would do.
        said = list(dict.fromkeys(text.split(", unable")[0] for text in said))
        rest = [text.removeprefix("Input should be ") for text in said[1:]]
        said = [" or ".join([said[0], *rest])]
    return f"{said[0]} (found {first.get('input')!r:.80})"


def _said(model: type[BaseModel], item: ErrorDetails) -> str:
    """Pydantic's words, without those that name Python's types."""
    kind, given = item["type"], item.get("input")
    if kind in ("tuple_type", "list_type"):
        length = _length_at(model, item["loc"])
        if length is None and not isinstance(given, Mapping):
            return f"Input should be a list, for example [{given}]"
        return f"Input should be a list{f' of {length} values' if length else ''}"
    if kind in ("model_type", "dict_type"):
        return "Input should be a section, key by key"
    text = item["msg"].removeprefix("Value error, ").replace(" after validation", "")
    text = re.sub(r"^(Tuple|List) should", "The list should", text)
    return re.sub(r"<\w+\.\w+: ('[^']*')>", r"\1", text)  # a member of an enumeration


def _missing(items: Sequence[ErrorDetails]) -> str:
    """A key without a value, or a list that is shorter than its fixed length."""
    given = items[0].get("input")
    if isinstance(given, list):
        return f"Input should be a list of {len(given) + len(items)} values (found {given!r:.80})"
    return "This key must be given"


def source_of(
    keys: Sequence[Key], given: Sequence[tuple[str, str]], files: Mapping[str, object]
) -> str:
    """The options and the file that may hold the refused keys, as the user typed them.

    Args:
        keys: The refused keys.
        given: Option (`--set` or one that stands for a key) and `key.sub=value`, later ones win.
        files: Path of the file to what it held before the options were applied.
    """
    found: dict[str, None] = {}
    for key in keys:
        by = [
            (option if option != "--set" else f"--set {name}", len(parts) <= len(key))
            for option, text in given
            for name in [text.partition("=")[0]]
            for parts in [name.split(".")]
            if all(a == b for a, b in zip(parts, key, strict=False))
        ]
        exact = [option for option, is_exact in by if is_exact]
        # A rule of a whole section may be broken by any of its keys, those of the file too.
        sources = exact[-1:] or [option for option, _ in by]
        sources += [] if exact else [path for path, data in files.items() if _holds(data, key)]
        found |= dict.fromkeys(sources or files)
    return ", ".join(found)


def _holds(data: object, key: Key) -> bool:
    for part in key:
        if isinstance(data, list):
            return True
        if not isinstance(data, Mapping) or part not in data:
            return False
        data = data[part]
    return True


def _nearest(model: type[BaseModel], key: Key, location: Sequence[str | int]) -> str:
    """What was meant: a key without its section, a slip at this depth, or a key of another place.

    Nothing that merely shares some letters: a wrong name costs more than the list of all.
    """
    names = _names_at(model, location[:-1])
    meant = (
        _ending_in(model, ".".join(key), key[0])
        or difflib.get_close_matches(key[-1], names, n=1, cutoff=_ALIKE)
        or _ending_in(model, key[-1], key[0])
    )
    if meant:
        shown = [repr(name) for name in meant[:_NAMED_AT_MOST]]
        more = [f"{len(meant) - len(shown)} more"] if len(meant) > len(shown) else []
        *first, last = shown + more
        return f"; did you mean {', '.join(first)}{' or ' if first else ''}{last}?"
    return f"; valid keys are {', '.join(sorted(names))}" if names else ""


def _ending_in(model: type[BaseModel], typed: str, section: str) -> list[str]:
    """Dotted keys that end in what was typed.

    Those of the same section come first, then shallow ones, then those of sections of one kind.
    """
    found = {name: owner for name, owner in _dotted(model) if name.endswith(f".{typed}")}
    alike = Counter(found.values())

    def rank(name: str) -> tuple[bool, int, int]:
        return not name.startswith(f"{section}."), name.count("."), -alike[found[name]]

    return sorted(found, key=rank)


def _dotted(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every key that `--set` takes, and the model that it belongs to."""
    for name, field in model.model_fields.items():
        yield f"{above}{name}", model
        for part in _sections_in(field.annotation):
            yield from _dotted(part, f"{above}{name}.")


def _sections_in(annotation: object) -> list[type[BaseModel]]:
    """Models that are this value or one of its kinds; those in a list have no dotted keys."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return _sections_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [found for part in get_args(annotation) for found in _sections_in(part)]
    return []


def _length_at(model: type[BaseModel], location: Sequence[str | int]) -> int | None:
    """How many values a list of fixed length has; None for any other."""
    for owner in _models_at(model, location[:-1]):
        field = owner.model_fields.get(str(location[-1]))
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        for kind in kinds:
            if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
                return len(get_args(kind))
    return None


def _names_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    return [name for found in _models_at(model, location) for name in found.model_fields]


def _models_at(model: type[BaseModel], location: Sequence[str | int]) -> list[type[BaseModel]]:
    current: list[type[BaseModel]] = [model]
    for part in location:
        found: list[type[BaseModel]] = []
        for candidate in current:
            field = candidate.model_fields.get(str(part))
            if field is not None:
                found.extend(_models_in(field.annotation))
        # A discriminated union puts its tag into the location: it names no field.
        current = found or current
    return current


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType) or get_args(annotation):
        return [found for part in get_args(annotation) for found in _models_in(part)]
    return []
