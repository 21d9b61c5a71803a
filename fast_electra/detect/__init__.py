"""A trained discriminator, asked about any text: in a notebook, and by `fast-electra detect`."""
