"""What the three loops here share: small networks, and scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SIZE, CLASSES = 8, 10


class Net(nn.Sequential):
    """Two convolutions and a classifier, as anybody would write them: nothing here knows of distillation."""

    def __init__(self, num_classes=CLASSES, width=8):
        layers = []
        for before, after, stride in ((3, width, 1), (width, 2 * width, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes))


def loaders(batch_size=64):
    """(training, validation) batches of (images, labels), in three channels of mean 0 and standard deviation 1."""
    pictures = load_digits()
    x, y = torch.tensor(pictures.images, dtype=torch.float32), torch.tensor(pictures.target)
    x = ((x - x[:1300].mean()) / x[:1300].std())[:, None].repeat(1, 3, 1, 1)
    parts = TensorDataset(x[:1300], y[:1300]), TensorDataset(x[1300:], y[1300:])
    return DataLoader(parts[0], batch_size, shuffle=True), DataLoader(parts[1], batch_size)


def trained_teacher(batches, epochs=3):
    """A wider network, trained on the labels alone."""
    teacher = Net(width=32)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for x, y in batches:
            loss = nn.functional.cross_entropy(teacher(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return teacher
