"""Pre-training of language models by replaced-token detection against a frozen auxiliary model (Fast-ELECTRA)."""

__version__ = "0.1.0"
