"""The training steps that step_vs_huggingface.py lets compete."""
