"""The machines of a run: what they have, and what must be built on them."""
