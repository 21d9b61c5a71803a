"""A stand-in for NVIDIA's apex, which needs a GPU and a build: the parts that we use, with their signatures."""
