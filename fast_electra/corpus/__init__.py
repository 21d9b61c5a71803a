"""Text to documents, token shards, sequences and batches."""
