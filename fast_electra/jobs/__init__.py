"""What each launch script does, under the same name."""
