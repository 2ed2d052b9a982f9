"""Circuits: what each channel of a layer is made of, by the channels of the layer before it."""
