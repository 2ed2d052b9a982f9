"""The forms that a store is exported in, for the command line, which answers sooner without what writes them."""

NPZ, NPY = "npz", "npy"
FORMATS = {
    NPZ: "batches as extraction scripts write them: batch_000000.npz and .json, the images, dataset_info.json",
    NPY: "one array a layer, LAYER.npy, and rows.parquet, which says what its rows are",
}
"""{what a form is called: what it is}"""
