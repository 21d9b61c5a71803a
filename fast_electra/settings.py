"""The strict base of every settings class, and the error that is shown to users as one line."""

from pydantic import BaseModel, ConfigDict


class UserError(ValueError):
    """A mistake that the user can mend: its message names what is wrong, where, and the remedy."""


class Settings(BaseModel):
    """Base of each concept's own settings: immutable, unknown keys refused, no silent conversion of types.

    A concept keeps its settings beside its code and never imports `fast_electra.config`, which composes them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
