"""Ray, and only here: connect, map tasks over items, retry, show progress. Knows nothing of what is computed."""
