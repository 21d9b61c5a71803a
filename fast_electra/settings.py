"""The strict base of every settings class, and the error that is shown to users as one line."""

from collections.abc import Iterable

from pydantic import AfterValidator, BaseModel, ConfigDict


class UserError(ValueError):
    """A mistake that the user can mend: its message names what is wrong, where, and the remedy."""


class Settings(BaseModel):
    """Base of each concept's own settings: immutable, unknown keys refused, no silent conversion of types.

    A concept keeps its settings beside its code and never imports `fast_electra.config`, which composes them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


def one_of(names: Iterable[str]) -> AfterValidator:
    """Return the check of a setting whose values are the names of a table: the names then stand in one place."""
    allowed = tuple(names)

    def check(name: str) -> str:
        if name not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return name

    return AfterValidator(check)
