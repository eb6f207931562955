"""The training loop, resumable bit for bit."""
