"""A temperature curriculum for any auxiliary model."""
