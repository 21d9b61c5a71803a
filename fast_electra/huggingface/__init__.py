"""Models of Hugging Face's transformers behind our own protocols: the auxiliary, and the main model."""
