"""The kinds of files that shards are of: each a module, found by `registry.format_of`."""
