"""Report on runs as one HTML page."""
