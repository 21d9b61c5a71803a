"""The offline store: its files, its reader, and whether it fits a run."""
