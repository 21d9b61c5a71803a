"""Pre-training of language models by replaced-token detection against a frozen auxiliary model (Fast-ELECTRA)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fast_electra.detect.detector import load_discriminator

__version__ = "0.1.0"
__all__ = ["load_discriminator"]


def __getattr__(name: str) -> Any:
    """Import what a notebook needs when it is asked for, so that `import fast_electra` stays light."""
    if name == "load_discriminator":
        from fast_electra.detect.detector import load_discriminator

        return load_discriminator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
