"""Methods compared by their fronts."""
