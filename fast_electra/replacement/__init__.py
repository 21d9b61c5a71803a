"""The distributions from which replacements are drawn."""
