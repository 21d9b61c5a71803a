"""Training: engines, the loop, checkpoints, and what a run writes and shows."""
