"""The strict base of every settings class, and the one line that tells a user about a mistake."""

import argparse
import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

LONGEST = 80  # characters of a wrong value that a message repeats


class UserError(ValueError):
    """A mistake that the user can fix: its message names what is wrong, where, and the remedy."""


class Settings(BaseModel):
    """Base of each concept's own settings: immutable, unknown keys refused, finite numbers, no conversion of types.

    A concept keeps its settings beside its code and never imports `fast_electra.config`, which composes them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


def local_path(text: str) -> str:
    """Return a path with `~` and `$NAME` replaced, as a shell would. Raise a ValueError if it is no path of here."""
    path = os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111 - a Path would drop "./" and a last "/"
    if text != text.strip() or not text or not text.isprintable():
        raise ValueError("must be a path without spaces or line ends around it")
    if "://" in text:
        raise ValueError("must be a path on this machine, without file:// or another scheme")
    if path.startswith("~") or re.search(r"\$\w|\$\{", path):
        raise ValueError("must be a path whose ~USER and $NAME exist here")
    return path


LocalPath = Annotated[str, AfterValidator(local_path)]  # of a file or folder


def path_argument(text: str) -> Path:
    """Return a path of the command line, as `LocalPath` takes it: the `type` of an argument."""
    try:
        return Path(local_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None


def file_argument(text: str) -> Path:
    """Return a path of the command line to write a file to. Where it is a link, the file behind it is meant.

    A folder is refused before the work, not after it. So is a device: a new file would take its place.
    """
    path = path_argument(text)
    if os.path.isdir(path):  # noqa: PTH112 - a Path would raise an OSError for a name that is too long
        raise argparse.ArgumentTypeError(f"{path} is a folder: name a file in it")
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
        raise argparse.ArgumentTypeError(f"{path} is a device or a pipe, which a file would replace: name a file")
    return Path(os.path.realpath(path)) if os.path.islink(path) else path  # noqa: PTH114


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
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind if there is none."""
    return f"{error}".strip().split("\n")[0] or type(error).__name__


def settings_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes inside an annotation such as `Model | None`."""
    if get_origin(annotation) is Annotated:
        return settings_in(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for option in get_args(annotation) for found in settings_in(option)]


def one_line(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Return the first thing that was wrong in a `model`: the key, what it must be or the nearest name, what it is.

    A field's description says what its value must be. `prefix` is the dotted path of the section that was validated.
    """
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a misspelt key is also missing
    kind, given, message = first["type"], first["input"], first["msg"].removeprefix("Value error, ")
    names, fields = [prefix] if prefix else [], _fields(model)
    field: FieldInfo | None = None
    for place, part in enumerate(first["loc"], 1):
        unknown = kind == "extra_forbidden" and place == len(first["loc"])
        if part in fields or unknown or isinstance(part, int):  # else pydantic's name for a member of a union
            names.append(str(part))
            field = None if unknown else fields.get(part)
            fields = fields if field is None else _fields(*settings_in(field.annotation))
    key = ".".join(names)
    if kind == "extra_forbidden":  # another member of a union may have it
        return f"unknown key {key}{nearest(names[-1], fields.keys() - {names[-1]})}"
    if kind == "missing":
        return f"{key} is missing"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{key} is a section: write it as {{...}}"
    shown = "" if isinstance(given, dict | BaseModel) else f", not {_short(given)}"
    wanted = None if field is None or kind == "value_error" else field.description or range_of(field)
    if wanted is None and message.startswith("Input should be "):
        wanted = message.removeprefix("Input should be ")
    if kind != "value_error" and isinstance(given, dict):
        return f"{key} is a value, not a section{f': {wanted}' if wanted else ''}"
    if wanted is not None:
        return f"{key} must be {wanted}{shown}"
    if message.startswith("must be "):
        return f"{key} {message}{shown}"
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}"


def range_of(field: FieldInfo) -> str | None:
    """Return what the value of a field must be, from its type and its bounds; None if its type is another."""
    kinds = set(get_args(field.annotation) or (field.annotation,))
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if len(kinds - {NoneType}) != 1 or (name := names.get((kinds - {NoneType}).pop())) is None:
        return None
    bounds = {
        sign: f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        for bound in (getattr(rule, attribute, None) for rule in field.metadata)
        if bound is not None
    }
    null = " or null" if NoneType in kinds else ""
    if bounds.keys() == {">=", "<="}:
        return f"{name} from {bounds['>=']} to {bounds['<=']}{null}"
    return " ".join([name, " and ".join(f"{sign} {bound}" for sign, bound in bounds.items())]).strip() + null


def _short(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _fields(*models: type[BaseModel]) -> dict[Any, FieldInfo]:
    """Return the fields of settings classes by the names that a config may use for them."""
    return {field.alias or name: field for model in models for name, field in model.model_fields.items()}
