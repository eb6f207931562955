"""Training methods: the loss that each minimises."""
