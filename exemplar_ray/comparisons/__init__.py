"""Comparisons: what two sets of points, or two networks over the same images, have in common. Numbers from arrays."""
