"""Feature visualisation as a job: for every channel the picture that an optimiser makes of what it looks for.

Items are groups of pictures, parts hold finished pictures with what they are worth.
"""
