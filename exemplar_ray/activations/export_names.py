"""The forms that a store is exported in, for the command line, which answers sooner without what writes them."""

NPZ, NPY, EMBEDDING_ATLAS = "npz", "npy", "embedding-atlas"
FORMATS = {
    NPZ: "batches as extraction scripts write them: batch_000000.npz and .json, the images, dataset_info.json",
    NPY: "one array a layer, LAYER.npy, and rows.parquet, which says what its rows are",
    EMBEDDING_ATLAS: "a map of a store, made by explore, as one parquet file with small pictures",
}
"""{what a form is called: what it is}"""
