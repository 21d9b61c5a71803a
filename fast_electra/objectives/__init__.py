"""What is learnt: the objectives, and the figures that measure them."""
