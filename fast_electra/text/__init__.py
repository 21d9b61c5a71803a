"""Text to a tokenizer and token shards: the commands `fast-electra tokenizer` and `fast-electra corpus`."""
