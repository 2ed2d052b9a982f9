"""The run folder: identity, items done, failed and pending, parts as bytes. Knows nothing of what is computed."""
