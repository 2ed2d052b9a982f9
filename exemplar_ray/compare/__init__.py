"""A job: two sets of images in one network, or two networks over the same images, compared."""
