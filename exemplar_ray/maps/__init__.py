"""Maps of points: projections that place others too, clusters, and what scores say of both."""
