"""A run: its loop, its engines, its checkpoints, and what is shown and written of it."""
