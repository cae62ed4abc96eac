"""Train the bundled digits model and its quantization-aware twin, and write them to ``qpass/demo``.

    python tools/train_digits.py [FOLDER]

Data: scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" test set, 1,797 images of 8x8 pixels.
Needs Paddle 3.3.1 and scikit-learn; takes about two minutes on one core. Every source of randomness is seeded.

The float network is trained, then *unbalanced*: the channels of two activations are multiplied by factors between 1 and
`SPREAD` and the weights that read them are divided by the same factors. ReLU is positively homogeneous, so the function
stays what it was, but the ranges differ between channels as they do in MobileNets trained without care (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, who do the reverse). The layers that
read those two activations then lose accuracy to int8, and an analysis has something to find.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ["FLAGS_enable_pir_api"] = "0"  # noqa: SIM112 - legacy .pdmodel files; read by Paddle on import

import numpy as np
import paddle
from paddle import nn
from paddle.nn.quant.quant_layers import QuantizedConv2D, QuantizedLinear
from sklearn.datasets import load_digits

SEED = 20240607
HELD_OUT = 500
CALIBRATION = 128
FLOAT_EPOCHS = 60
QAT_EPOCHS = 6
SPREAD = {"point": 96.0, "second": 32.0}
LAYERS = ("stem", "depth", "point", "first", "second", "down", "hidden", "head")


class Digits(nn.Layer):
    """[-1,1,8,8] images in [0, 1] -> [-1,10] probabilities."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = conv(1, 8), nn.BatchNorm2D(8)
        self.depth, self.depth_bn = conv(8, 8, groups=8), nn.BatchNorm2D(8)
        self.point, self.point_bn = conv(8, 16, size=1), nn.BatchNorm2D(16)
        self.first, self.first_bn = conv(16, 16), nn.BatchNorm2D(16)
        self.second, self.second_bn = conv(16, 16), nn.BatchNorm2D(16)
        self.down, self.down_bn = conv(16, 24, stride=2), nn.BatchNorm2D(24)
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.hidden = nn.Linear(24, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, image):
        x = nn.functional.relu(self.stem_bn(self.stem(image)))
        x = nn.functional.relu(self.depth_bn(self.depth(x)))
        x = nn.functional.relu(self.point_bn(self.point(x)))
        y = nn.functional.relu(self.first_bn(self.first(x)))
        x = nn.functional.relu(x + self.second_bn(self.second(y)))
        x = nn.functional.relu(self.down_bn(self.down(x)))
        x = self.pool(x).flatten(1)
        x = nn.functional.relu(self.hidden(x))
        return nn.functional.softmax(self.head(x))


def conv(inputs, outputs, size=3, groups=1, stride=1):
    return nn.Conv2D(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias_attr=False)


def digits():
    """(train images, train labels, held-out images, held-out labels); float32 in [0, 1] and int64."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(images))
    images = (images[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    labels = labels[order].astype(np.int64)
    return images[HELD_OUT:], labels[HELD_OUT:], images[:HELD_OUT], labels[:HELD_OUT]


def train(model, images, labels, epochs, rate, batch=64, freeze_norms=False):
    """Adam with a cosine schedule; `freeze_norms` keeps the running statistics of batch normalization as they are."""
    random = np.random.default_rng(SEED)
    steps = epochs * (len(images) // batch)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(rate, steps)
    optimizer = paddle.optimizer.Adam(schedule, parameters=model.parameters())
    model.train()
    for layer in model.sublayers():
        if freeze_norms and isinstance(layer, nn.BatchNorm2D):
            layer.eval()
    for _ in range(epochs):
        order = random.permutation(len(images))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            probabilities = model(paddle.to_tensor(shifted(images[chosen], random)))
            target = paddle.to_tensor(labels[chosen])
            loss = nn.functional.nll_loss(paddle.log(probabilities + 1e-7), target)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            schedule.step()
    model.eval()


def shifted(images, random):
    """Each batch moved by at most one pixel in each direction: the only augmentation."""
    dy, dx = random.integers(-1, 2, 2)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.ascontiguousarray(padded[:, :, 1 + dy : 9 + dy, 1 + dx : 9 + dx])


def accuracy(model, images, labels):
    with paddle.no_grad():
        return float((model(paddle.to_tensor(images)).numpy().argmax(1) == labels).mean())


def unbalance(norm, reader, spread):
    """Multiply the channels that `norm` writes by 1 to `spread`, evenly in the exponent; divide what `reader` reads."""
    channels = norm.weight.shape[0]
    factors = np.float32(spread) ** np.random.default_rng(SEED).permutation(np.linspace(0, 1, channels))
    factors = factors.astype(np.float32)
    norm.weight.set_value(norm.weight.numpy() * factors)
    norm.bias.set_value(norm.bias.numpy() * factors)
    reader.weight.set_value(reader.weight.numpy() / factors[None, :, None, None])


def quantize_layers(model):
    """Put fake quantization on weight and input of every layer, in place; parameters keep their names."""
    kinds = {"weight_quantize_type": "channel_wise_abs_max", "activation_quantize_type": "moving_average_abs_max"}
    for name in LAYERS:
        layer = getattr(model, name)
        wrapper = QuantizedConv2D if isinstance(layer, nn.Conv2D) else QuantizedLinear
        setattr(model, name, wrapper(layer, **kinds))


def export(model, prefix):
    """Save as `.pdmodel` and `.pdiparams`, without the `op_callstack` strings (they name files of this machine)."""
    from qpass import load, save
    from qpass.passes import DropDebugInfo

    image = paddle.static.InputSpec([None, 1, 8, 8], "float32", "image")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "inference"
        paddle.jit.save(model, str(made), [image])
        save(DropDebugInfo()(load(made)), prefix, overwrite=True)


def main(folder):
    paddle.seed(SEED)
    train_images, train_labels, test_images, test_labels = digits()
    model = Digits()
    train(model, train_images, train_labels, FLOAT_EPOCHS, 5e-3)
    print(f"float: {accuracy(model, test_images, test_labels):.4f}")
    unbalance(model.depth_bn, model.point, SPREAD["point"])
    unbalance(model.first_bn, model.second, SPREAD["second"])
    print(f"float, unbalanced: {accuracy(model, test_images, test_labels):.4f}")
    export(model, folder / "digits")
    quantize_layers(model)
    train(model, train_images, train_labels, QAT_EPOCHS, 1e-4, freeze_norms=True)
    print(f"quantization-aware twin: {accuracy(model, test_images, test_labels):.4f}")
    export(model, folder / "digits_qat")
    np.savez_compressed(
        folder / "digits.npz",
        test_images=test_images,
        test_labels=test_labels,
        calibration_images=train_images[:CALIBRATION],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "qpass" / "demo")
