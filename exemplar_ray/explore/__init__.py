"""The job that maps: a map of a store's points, clusters, what both are worth, and a page."""
