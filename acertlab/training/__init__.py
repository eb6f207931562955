"""Training that maximises certified radii."""
