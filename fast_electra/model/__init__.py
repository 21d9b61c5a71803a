"""The encoder, its heads, and the folders that hold trained models."""
