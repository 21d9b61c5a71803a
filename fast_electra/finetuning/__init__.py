"""Fine-tuning's files and figures: tasks, their data, metrics, and predictions. Nothing here needs torch."""
