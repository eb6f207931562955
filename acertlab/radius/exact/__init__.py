"""The exact robust radius of small piecewise linear networks, by mixed-integer programming."""
