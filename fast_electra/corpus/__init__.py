"""From token shards to sequences and batches; and the tokenizer that made the tokens."""
