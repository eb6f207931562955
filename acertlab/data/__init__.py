"""What lies on disk: datasets and runs."""
