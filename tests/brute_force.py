"""Every statistic by brute force: all images through the plain network, then numpy in float64.

Shares no code with the package but the names of columns.
"""

import numpy as np
import torch
from notebook_loop import MEANS, PREPARE, network, sample_images
from torch import nn

LAYERS = {"inceptionv1": ("mixed3a", "mixed4a", "mixed5b"), "bvlc": ("mixed3a", "mixed4a", "mixed5b")}
BATCH = 25


def activations(name, shards):
    """Return {(layer, statistic): float64 [images, channels]} of the images of parquet shards, in order.

    With each layer, what it was before its ReLU: the four convolutions' outputs side by side.
    """
    model = network(name)
    found, outputs = {}, {}
    for layer in LAYERS[name]:
        model.get_submodule(layer).register_forward_hook(
            lambda m, i, output, layer=layer: outputs.update({layer: output})
        )
    convolutions = {layer: [] for layer in LAYERS[name]}
    for module_name, module in model.named_modules():
        for layer in LAYERS[name]:
            if isinstance(module, nn.Conv2d) and module_name.startswith(layer):
                module.register_forward_hook(
                    lambda m, i, output, key=module_name: outputs.update({key: output.clone()})
                )
                convolutions[layer].append(module_name)
    images = [PREPARE(image).float() - torch.tensor(MEANS[name]).view(3, 1, 1) for image in sample_images(shards)]
    for start in range(0, len(images), BATCH):
        with torch.no_grad():
            model(torch.stack(images[start : start + BATCH]))
        for layer in LAYERS[name]:
            before = concatenated_before_relu(outputs[layer], [outputs[key] for key in convolutions[layer]])
            for key, output in ((layer, outputs[layer]), (f"{layer}_pre_relu", before)):
                maps = output.numpy().astype(np.float64)
                height, width = maps.shape[2:]
                for statistic, values in (
                    ("mean", maps.mean(axis=(2, 3))),
                    ("max", maps.max(axis=(2, 3))),
                    ("center", maps[:, :, height // 2, width // 2]),
                ):
                    found.setdefault((key, statistic), []).append(values)
    return {key: np.concatenate(values) for key, values in found.items()}


def concatenated_before_relu(after, candidates):
    """Find the convolutions that, rectified and side by side, are a layer's output; return them side by side."""
    pieces, start = [], 0
    while start < after.shape[1]:
        [piece] = [
            c
            for c in candidates
            if start + c.shape[1] <= after.shape[1]
            and torch.equal(c.clamp(min=0), after[:, start : start + c.shape[1]])
        ]
        pieces.append(piece)
        start += piece.shape[1]
    return torch.cat(pieces, dim=1)
