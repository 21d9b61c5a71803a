"""Text -> documents -> token shards -> sequences -> batches."""
