"""`fast-electra inspect`: what a file or folder is, what it was made from, and whether it is whole."""
