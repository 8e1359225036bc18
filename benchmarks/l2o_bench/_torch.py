"""What one would write in PyTorch: an eager loop with autograd."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from l2o_eqx.data import load_mnist

from ._cases import HIDDEN_SIZES, WINDOW, Case

# An optional extra, which type checkers need not find.
torch: Any = importlib.import_module("torch")


class _Optimizer(torch.nn.Module):
    def __init__(self, is_network: bool):
        super().__init__()
        sizes = (1, *HIDDEN_SIZES)
        self.cells = torch.nn.ModuleList(map(torch.nn.LSTMCell, sizes, sizes[1:]))
        self.is_network, self.rate = is_network, 0.01 if is_network else 0.001

    def forward(self, grads: Any, state: Any) -> tuple[Any, Any]:
        inputs = grads[:, None]
        if self.is_network:
            size = inputs.abs()
            log = size.clamp(min=np.exp(-10)).log() / 10 * inputs.sign()
            inputs = torch.where(size >= np.exp(-10), log, -np.exp(10) * inputs)
        next_state = []
        for cell, (hidden, memory) in zip(self.cells, state, strict=True):
            hidden, memory = cell(inputs, (hidden, memory))
            next_state.append((hidden, memory))
            inputs = hidden
        return self.rate * inputs.sum(1), next_state


def _quadratic() -> tuple[int, Callable[[Any, int], Any]]:
    matrix, target = torch.randn(16, 16), torch.randn(16)
    return 16, lambda theta, step: ((matrix @ theta - target) ** 2).sum()


def _network() -> tuple[int, Callable[[Any, int], Any]]:
    digits = load_mnist("embedded")
    images = torch.tensor(np.asarray(digits.train_images).reshape(-1, 784) / 255.0, dtype=torch.float32)
    labels = torch.tensor(np.asarray(digits.train_labels), dtype=torch.long)
    shapes = [(32, 784), (32,), (10, 32), (10,)]
    sizes = [int(np.prod(shape)) for shape in shapes]

    def loss(theta: Any, step: int) -> Any:
        w1, b1, w2, b2 = (p.reshape(s) for p, s in zip(theta.split(sizes), shapes, strict=True))
        rows = torch.arange(128 * step, 128 * (step + 1)) % len(labels)
        hidden = torch.sigmoid(images[rows] @ w1.T + b1)
        return torch.nn.functional.cross_entropy(hidden @ w2.T + b2, labels[rows])

    return sum(sizes), loss


def make(case: Case) -> Callable[[], Any]:
    """A function that trains on one new objective for `case.num_steps` steps."""
    optimizer = _Optimizer(case.is_network)
    adam = torch.optim.Adam(optimizer.parameters(), 1e-3, eps=1e-7)

    def run() -> Any:
        size, loss_of = _network() if case.is_network else _quadratic()
        theta = 0.1 * torch.randn(size)
        state = [(torch.zeros(size, h), torch.zeros(size, h)) for h in HIDDEN_SIZES]
        total = torch.zeros(())
        for start in range(0, case.num_steps, WINDOW):
            theta = theta.detach().requires_grad_()
            state = [(hidden.detach(), memory.detach()) for hidden, memory in state]
            total = torch.zeros(())
            for step in range(start, start + WINDOW):
                loss = loss_of(theta, step)
                (grads,) = torch.autograd.grad(loss, theta, retain_graph=True)
                update, state = optimizer(grads.detach(), state)
                theta = theta + update
                total = total + loss
            adam.zero_grad()
            total.backward()
            for parameter in optimizer.parameters():
                parameter.grad /= parameter.grad.norm().clamp(min=1e-30)
            adam.step()
        return total.item()

    return run
