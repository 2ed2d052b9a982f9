"""A job: the activations of every image, stored with the ids of their rows."""
