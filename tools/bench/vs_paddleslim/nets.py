"""Nets with seeded weights whose activations stay alive, written by Paddle; and images for them.

With Paddle's own initial weights MobileNetV1 is degenerate: activations fall to 1e-13, and whatever is measured at its
outputs is rounding noise. Here weights are drawn after He et al. (2015, arXiv:1502.01852), batch norms keep the
statistics of a batch, and the last layer's outputs are centred and scaled, so that answers differ between images. Batch
norms have offset 1: with 0 the net is so non-linear that a scale that differs in its last bit moves metrics by 1e-4.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from qpass.runtime.paddle_env import import_paddle

SPREAD = 3.0
"""Standard deviation of the logits: probabilities far from both 0 and 1."""


def smooth_images(count: int, side: int, seed: int) -> np.ndarray:
    """Coarse patterns under fine noise, float32 [count, 3, side, side]; pure noise looks the same to every pooling."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 4, 4), dtype=np.float32)
    fine = rng.standard_normal((count, 3, side, side), dtype=np.float32)
    return np.kron(coarse, np.ones((side // 4, side // 4), np.float32)) + np.float32(0.3) * fine


def mobilenet_v1(prefix: Path, scale: float, side: int, classes: int) -> None:
    """MobileNetV1 (28 layers) for `side` x `side` images."""
    paddle = import_paddle()
    net = paddle.vision.models.mobilenet_v1(scale=scale, num_classes=classes)
    _write(prefix, net, net.fc, side)


def plain_chain(prefix: Path, side: int) -> None:
    """A chain of five layers, as LeNet: no batch norm, no branch."""
    nn = import_paddle().nn
    head = nn.Linear(128, 10)
    layers = [nn.Conv2D(3, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2D(2)]
    layers += [nn.Conv2D(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2D(2)]
    layers += [nn.Conv2D(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2D(2), nn.Flatten()]
    layers += [nn.Linear(64 * (side // 8) ** 2, 128), nn.ReLU(), head]
    _write(prefix, nn.Sequential(*layers), head, side)


def deep_chain(prefix: Path, layers: int, channels: int, side: int) -> None:
    """A chain of `layers` - 1 convolutions of equal width, and a linear layer."""
    nn = import_paddle().nn
    body: list[Any] = []
    for given in (3, *[channels] * (layers - 2)):
        body += [nn.Conv2D(given, channels, 3, padding=1, bias_attr=False), nn.BatchNorm2D(channels), nn.ReLU()]
    head = nn.Linear(channels, 10)
    _write(prefix, nn.Sequential(*body, nn.AdaptiveAvgPool2D(1), nn.Flatten(), head), head, side)


def _write(prefix: Path, net: Any, head: Any, side: int) -> None:
    paddle = import_paddle()
    images = paddle.to_tensor(smooth_images(16, side, seed=1))
    with paddle.no_grad():
        _enliven(net, images)
        logits = net(images)
        middle = logits.mean(axis=0)
        factor = SPREAD / float((logits - middle).std())
        head.weight.set_value(head.weight * factor)
        head.bias.set_value((head.bias - middle) * factor)
    whole = paddle.nn.Sequential(net, paddle.nn.Softmax())
    whole.eval()
    prefix.parent.mkdir(parents=True, exist_ok=True)
    spec = paddle.static.InputSpec([None, 3, side, side], "float32", "image")
    guard = getattr(getattr(paddle, "pir_utils", None), "OldIrGuard", None)
    with contextlib.nullcontext() if guard is None else guard():  # PaddleSlim reads no PIR
        paddle.jit.save(whole, str(prefix), input_spec=[spec])


def _enliven(net: Any, images: Any) -> None:
    """Draw the weights, then let every batch norm take the statistics of `images` for its own."""
    nn, rng = import_paddle().nn, np.random.default_rng(0)
    for layer in net.sublayers():
        if isinstance(layer, nn.Conv2D | nn.Linear):
            shape = layer.weight.shape
            fan_in = math.prod(shape[1:]) if isinstance(layer, nn.Conv2D) else shape[0]
            drawn = rng.standard_normal(shape, dtype=np.float32) * np.float32(math.sqrt(2 / fan_in))
            layer.weight.set_value(drawn)
        if isinstance(layer, nn.BatchNorm2D):
            layer._momentum = 0.0
            layer.bias.set_value(np.ones(layer.bias.shape, np.float32))
    net.train()
    net(images)
    net.eval()
