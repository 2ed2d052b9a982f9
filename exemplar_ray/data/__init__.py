"""Where images come from: shards, decoding, preprocessing, labels, making shards. Knows nothing of networks."""
