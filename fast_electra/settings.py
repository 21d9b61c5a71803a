"""The strict base of every settings class, and the one line that tells a user about a mistake."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo


class UserError(ValueError):
    """A mistake that the user can fix: its message names what is wrong, where, and the remedy."""


class Settings(BaseModel):
    """Base of each concept's own settings: immutable, unknown keys refused, no silent conversion of types.

    A concept keeps its settings beside its code and never imports `fast_electra.config`, which composes them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


def one_of(names: Iterable[str]) -> AfterValidator:
    """Return the check of a setting whose values are the names of a table."""
    allowed = tuple(names)

    def check(name: str) -> str:
        if name not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return name

    return AfterValidator(check)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the name probably meant, or all known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def settings_in(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class inside an annotation such as `Model | None`, or None if there is none."""
    options = get_args(annotation) or (annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def one_line(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Return the first thing that was wrong in a `model`: the key, what it must be or the nearest name, what it is.

    A field's description says what its value must be. `prefix` is the dotted path of the section that was validated.
    """
    first = error.errors()[0]
    kind, given, message = first["type"], first["input"], first["msg"].removeprefix("Value error, ")
    names, fields = [prefix] if prefix else [], _fields(model)
    field: FieldInfo | None = None
    for place, part in enumerate(first["loc"], 1):
        unknown = kind == "extra_forbidden" and place == len(first["loc"])
        if part in fields or unknown or isinstance(part, int):  # else pydantic's name for a member of a union
            names.append(str(part))
            field = fields.get(part)
            fields = fields if field is None else _fields(settings_in(field.annotation))
    key = ".".join(names)
    if kind == "extra_forbidden":
        return f"unknown key {key}{nearest(names[-1], fields)}"
    if kind == "missing":
        return f"{key} is missing"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{key} is a section: write it as {{...}}"
    shown = "" if isinstance(given, dict | BaseModel) else f", not {given!r}"
    if kind != "value_error" and isinstance(given, dict):
        return f"{key} is a value, not a section"
    if field is not None and field.description is not None and kind != "value_error":
        return f"{key} must be {field.description}{shown}"
    if message.startswith("Input should be "):
        message = f"must be {message.removeprefix('Input should be ')}"
    if message.startswith("must be "):
        return f"{key} {message}{shown}"
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}"


def _fields(model: type[BaseModel] | None) -> dict[Any, FieldInfo]:
    """Return the fields of a settings class by the names that a config may use for them."""
    return {} if model is None else {field.alias or name: field for name, field in model.model_fields.items()}
