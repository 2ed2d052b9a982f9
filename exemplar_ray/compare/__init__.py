"""The job that compares: two sets of images in one network, or two networks over the same images, with pages."""
