"""What a training costs: estimated from its own steps, calculated, and measured on a GPU."""
