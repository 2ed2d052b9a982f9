"""Where files are: a folder on a disk or an object store, and the Hugging Face Hub. Knows nothing of images."""
