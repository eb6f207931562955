"""From the margin to the certified radius, and its summary."""
