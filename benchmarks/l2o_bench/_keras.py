"""What the thesis did, in TensorFlow: an eager loop under a tape, with Keras LSTM cells."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from l2o_eqx.data import load_mnist

from ._cases import HIDDEN_SIZES, WINDOW, Case

# An optional extra, which type checkers need not find.
tf: Any = importlib.import_module("tensorflow")


def _quadratic() -> tuple[int, Callable[[Any, int], Any]]:
    matrix, target = tf.random.normal((16, 16)), tf.random.normal((16,))
    return 16, lambda theta, step: tf.reduce_sum((tf.linalg.matvec(matrix, theta) - target) ** 2)


def _network() -> tuple[int, Callable[[Any, int], Any]]:
    digits = load_mnist("embedded")
    images = tf.constant(np.asarray(digits.train_images).reshape(-1, 784) / 255.0, tf.float32)
    labels = tf.constant(np.asarray(digits.train_labels), tf.int32)
    shapes = [(784, 32), (32,), (32, 10), (10,)]
    sizes = [int(np.prod(shape)) for shape in shapes]

    def loss(theta: Any, step: int) -> Any:
        w1, b1, w2, b2 = (tf.reshape(p, s) for p, s in zip(tf.split(theta, sizes), shapes, strict=True))
        rows = np.arange(128 * step, 128 * (step + 1)) % len(labels)
        logits = tf.sigmoid(tf.gather(images, rows) @ w1 + b1) @ w2 + b2
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.gather(labels, rows), logits)
        return tf.reduce_mean(losses)

    return sum(sizes), loss


def _preprocess(grads: Any) -> Any:
    size = tf.abs(grads)
    log = tf.math.log(tf.maximum(size, np.exp(-10))) / 10 * tf.sign(grads)
    return tf.where(size >= np.exp(-10), log, -np.exp(10).astype(np.float32) * grads)


def make(case: Case) -> Callable[[], Any]:
    """A function that trains on one new objective for `case.num_steps` steps."""
    cells = [tf.keras.layers.LSTMCell(size) for size in HIDDEN_SIZES]
    adam = tf.keras.optimizers.Adam(1e-3, epsilon=1e-7)
    rate = 0.01 if case.is_network else 0.001

    def run() -> Any:
        size, loss_of = _network() if case.is_network else _quadratic()
        theta = 0.1 * tf.random.normal((size,))
        state = [[tf.zeros((size, h)), tf.zeros((size, h))] for h in HIDDEN_SIZES]
        total = tf.zeros(())
        for start in range(0, case.num_steps, WINDOW):
            total = tf.zeros(())
            with tf.GradientTape() as tape:
                for step in range(start, start + WINDOW):
                    with tf.GradientTape() as inner:
                        inner.watch(theta)
                        loss = loss_of(theta, step)
                    grads = tf.stop_gradient(inner.gradient(loss, theta))
                    inputs = (_preprocess(grads) if case.is_network else grads)[:, None]
                    for i, cell in enumerate(cells):
                        inputs, state[i] = cell(inputs, state[i])
                    theta = theta + rate * tf.reduce_sum(inputs, 1)
                    total = total + loss
            variables = [v for cell in cells for v in cell.trainable_variables]
            gradients = [tf.math.l2_normalize(g) for g in tape.gradient(total, variables)]
            adam.apply_gradients(zip(gradients, variables, strict=True))
        return float(total)

    return run
