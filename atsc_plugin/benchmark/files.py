"""`bench files`: image files of ImageNet's kind through the host's transforms and through ours, in one process."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from atsc_plugin.benchmark.timing import interleaved, summary
from atsc_plugin.data.worker_loader import cropped_as_tensors

SIZE, QUALITY = (500, 375), 92  # of a usual ImageNet file, about 100 kB
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_pictures(folder, count):
    """`count` JPEG files of random blobs with some noise, in one class folder."""
    draw = np.random.default_rng(0)
    (Path(folder) / "class").mkdir()
    for number in range(count):
        blobs = Image.fromarray(draw.integers(0, 256, (38, 50, 3), dtype=np.uint8)).resize(SIZE, Image.BICUBIC)
        noisy = np.asarray(blobs) + draw.normal(0, 4, (SIZE[1], SIZE[0], 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            Path(folder, "class", f"{number}.jpg"), quality=QUALITY
        )


def bench_files(count, device, rounds):
    """Rows: images a second of one worker that reads, decodes and augments `count` files; both ways in turns."""
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    pipeline = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a DataLoader's worker
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_pictures(folder, count)
            theirs = ImageFolder(folder, pipeline)
            sets = {"decoded to tensors": cropped_as_tensors(theirs), "the host's way": theirs}
            passes = {
                name: lambda files=files: [files[index] for index in range(count)] for name, files in sets.items()
            }
            times = interleaved(passes, device, rounds)
    finally:
        torch.set_num_threads(threads)
    rows = [{"arm": name, **summary(values)} for name, values in times.items()]
    for row in rows:
        row["images_per_second"] = 1000 * count / row["ms"]
    return rows, {"decoded to tensors over the host's way": rows[0]["images_per_second"] / rows[1]["images_per_second"]}
