"""From text to a tokenizer and token shards: what `fast-electra tokenizer` and `fast-electra corpus` run."""
