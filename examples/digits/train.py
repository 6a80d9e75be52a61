"""Trains, prunes and fine-tunes the digits network, and writes the files beside this one.

Run from the repo root with the extras torch and examples: python -m examples.digits.train (1 minute on 2 cores).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

if not __package__:  # started as `python examples/digits/train.py`: the repo root is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import onnx
import sklearn
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

from examples.digits.export import to_onnx
from tvm_sparse.prune import magnitude_mask

TEST_IMAGES = 450
SPARSITY = 0.951  # a hair above 95 %, so that rounding to whole weights never lands below
PRUNED = ("conv2", "conv3")  # the first convolution has 288 weights: nothing to win
DENSE_EPOCHS, PRUNING_EPOCHS, TUNING_EPOCHS = 40, 30, 30
BATCH = 64


class DigitsNet(nn.Module):
    """Three 3×3 convolutions with batch norm, 1 → 32 → 64 → 64 channels, halved once, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (n, 1, 8, 8) to logits (n, 10)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(functional.relu(self.bn2(self.conv2(x))), 2)
        x = functional.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean(dim=(2, 3)))


def split_digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return train images, test images (m, 1, 8, 8) float32 in [0, 1], train labels and test labels (m,)."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    return train_test_split(images, digits.target, test_size=TEST_IMAGES, stratify=digits.target, random_state=seed)


class Trainer:
    """Trains a network on the digits and keeps pruned weights at zero."""

    def __init__(self, net: DigitsNet, images: np.ndarray, labels: np.ndarray) -> None:
        self.net = net
        self._images, self._labels = torch.from_numpy(images), torch.from_numpy(labels)
        self._masks: dict[str, torch.Tensor] = {}

    def train(self, epochs: int, learning_rate: float, final_sparsity: float | None = None) -> None:
        """Train with a cosine schedule; with final_sparsity, raise the sparsity before each epoch up to it.

        The sparsity follows the cubic ramp of Zhu and Gupta 2017.
        """
        optimizer = torch.optim.Adam(self.net.parameters(), lr=learning_rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for epoch in range(epochs):
            if final_sparsity is not None:
                self._prune(final_sparsity * (1 - (1 - (epoch + 1) / epochs) ** 3))
            self._epoch(optimizer)
            schedule.step()

    @torch.no_grad()
    def _prune(self, sparsity: float) -> None:
        for name in PRUNED:
            weight = getattr(self.net, name).weight
            mask = magnitude_mask(weight.numpy(), sparsity, "unstructured")
            self._masks[name] = torch.from_numpy(mask).to(weight.dtype)
            weight *= self._masks[name]

    def _epoch(self, optimizer: torch.optim.Optimizer) -> None:
        self.net.train()
        for rows in torch.randperm(len(self._images)).split(BATCH):
            loss = functional.cross_entropy(self.net(_shifted(self._images[rows])), self._labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for name, mask in self._masks.items():
                    getattr(self.net, name).weight *= mask


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """Move the whole batch by up to one pixel each way, so that 1347 images go further."""
    dy, dx = torch.randint(0, 3, (2,)).tolist()
    return functional.pad(images, (1, 1, 1, 1))[:, :, dy : dy + 8, dx : dx + 8]


@torch.no_grad()
def accuracy(net: DigitsNet, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images the network labels right."""
    net.eval()
    return float((net(torch.from_numpy(images)).argmax(1).numpy() == labels).mean())


def save_onnx(net: DigitsNet, path: Path) -> None:
    """Write the network to path."""
    onnx.save(to_onnx({name: value.numpy() for name, value in net.state_dict().items()}), path)


def main() -> None:
    """Train, prune, report and write digits_*.onnx, digits_test.npz and digits.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split, the weights and the order (default 0)")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    train_images, test_images, train_labels, test_labels = split_digits(options.seed)

    net = DigitsNet()
    trainer = Trainer(net, train_images, train_labels)
    trainer.train(DENSE_EPOCHS, 3e-3)
    dense_accuracy = accuracy(net, test_images, test_labels)
    print(f"dense: {dense_accuracy:.2%} of {TEST_IMAGES} held-out images", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    save_onnx(net, options.output / "digits_dense.onnx")

    trainer.train(PRUNING_EPOCHS, 1e-3, final_sparsity=SPARSITY)
    print(f"pruned, before fine-tuning: {accuracy(net, test_images, test_labels):.2%}", flush=True)
    trainer.train(TUNING_EPOCHS, 1e-3)
    pruned_accuracy = accuracy(net, test_images, test_labels)
    sparsity = {name: float((getattr(net, name).weight == 0).double().mean()) for name in PRUNED}
    print(f"pruned, fine-tuned: {pruned_accuracy:.2%} at a sparsity of {min(sparsity.values()):.2%}")
    save_onnx(net, options.output / "digits_pruned95.onnx")

    np.savez_compressed(options.output / "digits_test.npz", images=test_images, labels=test_labels)
    versions = {"python": platform.python_version()}
    versions |= {module.__name__: module.__version__ for module in (torch, sklearn, np, onnx)}
    report = {
        "dense_accuracy": dense_accuracy,
        "pruned_accuracy": pruned_accuracy,
        "sparsity": sparsity,
        "test_images": TEST_IMAGES,
        "seed": options.seed,
        "versions": versions,
    }
    (options.output / "digits.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
