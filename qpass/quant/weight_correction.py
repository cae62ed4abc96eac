"""The framework's own ``bias_correction=True``: it moves and stretches the weight, not a bias.

Source: `bias_correction_w` in python/paddle/static/quantization/utils.py, 2.6 and 3.3, after Banner et al. 2019, *Post
training 4-bit quantization of convolutional networks for rapid-deployment* (arXiv:1810.05723), section 5.2: the
quantized weight shall have the mean and the deviation of the float one, channel by channel. The framework's own does
something else where there is more than one channel: `np.resize` lays the channels' corrections out along the *last*
axis, so that each number gets that of some other channel. That is kept here, bit for bit, because this is for
comparison with the framework only. (Under ``onnx_format=True`` the framework takes the argument and corrects nothing.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qpass.quant.spec import QuantSpec

_EPS = 1e-8  # in the framework, both for a deviation and for a scale of zero


def corrected_like_paddle(
    weight: npt.NDArray[np.float32], threshold: np.ndarray, spec: QuantSpec
) -> npt.NDArray[np.float32]:
    """The integers, held in float32, that the framework stores for a weight under ``bias_correction=True``.

    Parameters
    ----------
    weight : np.ndarray
        float32.
    threshold : np.ndarray
        float32, () or (C,).
    spec : QuantSpec
        With axis None, 0 or 1.
    """
    n, axis = spec.qmax, spec.axis
    scale = np.asarray(threshold, np.float32).reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    if axis is None:
        scale = scale.reshape(())
    stand = np.round(_levels(weight, scale, n)) * scale / np.float32(n)
    shift: np.ndarray = weight - stand
    if axis is None:
        mean, stretch = shift.mean(), weight.std() / (stand.std() + np.float32(_EPS))
    else:
        mean = np.array([c.mean() for c in _channels(shift, axis)])
        stretch = np.array([c.std() for c in _channels(weight, axis)]) / (
            np.array([c.std() for c in _channels(stand, axis)]) + np.float32(_EPS)
        )
        mean, stretch = np.resize(mean, weight.shape), np.resize(stretch, weight.shape)
    found: npt.NDArray[np.float32] = np.round(_levels((mean + stand) * stretch, scale, n))
    return found


def _levels(x: np.ndarray, scale: np.ndarray, n: int) -> np.ndarray:
    # `quant_tensor` in the same file.
    live = np.where(scale == 0, np.float32(_EPS), scale)
    levels: np.ndarray = np.clip(x, -live, live) / live * np.float32(n)
    return levels


def _channels(array: np.ndarray, axis: int) -> list[np.ndarray]:
    # The framework flattens channels of axis 0 and slices those of axis 1: sums of float32 depend on the layout.
    if axis == 0:
        return list(array.reshape(array.shape[0], -1))
    return [array[:, i] for i in range(array.shape[1])]
