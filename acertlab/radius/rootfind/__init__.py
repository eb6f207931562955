"""Roots of many scalar functions at once; knows nothing of networks."""
