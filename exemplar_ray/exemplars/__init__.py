"""The main job: for every channel, the images of a data set that excite it most.

The field also calls exemplars dataset examples, or maximally activating images.
"""
