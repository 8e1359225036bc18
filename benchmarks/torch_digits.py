"""`LearnedOptimizer` in PyTorch beside `torch.optim`, on digits: how good it is there, and what a step costs.

    python benchmarks/torch_digits.py --out docs/quality

The network that the gallery's `mnist` and `classifiers` were trained on, 784-32-10, in PyTorch's own initial
weights, minibatches of 128 of the 5,000 embedded digits, 100 steps. Rates are tuned on other draws than those
that are judged, as many for all.
A step is timed in alternation with those of Adam and of Muon (which steps the matrices alone), forward and
backward included, and the optimizer's part of it.
"""

import argparse
import functools
import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import results

import l2o_eqx
from l2o_eqx.torch_runtime import LearnedOptimizer

torch: Any = importlib.import_module("torch")
LEARNED = ("mnist", "classifiers")
RATES = [10 ** (k / 4) for k in range(-16, 5)]
NUM_STEPS, LAST = 100, 20
BASELINES = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "RMSprop": torch.optim.RMSprop,
    "SGD": torch.optim.SGD,
}


def digits():
    data = l2o_eqx.data.load_mnist("embedded")
    images = torch.tensor(data.train_images).reshape(len(data.train_images), -1)
    return images.float() / 255, torch.tensor(data.train_labels).long()


def network(hidden=32):
    return torch.nn.Sequential(torch.nn.Linear(784, hidden), torch.nn.Sigmoid(), torch.nn.Linear(hidden, 10))


def final_loss(make, data, seed):
    """The mean of the last losses; of what is not finite, infinity."""
    torch.manual_seed(seed)
    images, labels = data
    model = network()
    optimizer, losses = make(model), []
    for _ in range(NUM_STEPS):
        batch = torch.randperm(len(images))[:128]
        loss = gradients(model, optimizer, images[batch], labels[batch])
        optimizer.step()
        losses.append(loss.item())
    final = float(np.mean(losses[-LAST:]))
    return final if np.isfinite(final) else float("inf")


def gradients(model, optimizer, images, labels):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    return loss


def learned(name, model):
    return LearnedOptimizer(model.named_parameters(), name, num_steps=NUM_STEPS)


def baseline(cls, rate, schedule, model):
    optimizer = cls(model.parameters(), lr=rate)
    if schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
    return optimizer


def judge(make, data, count):
    losses = sorted(final_loss(make, data, seed) for seed in range(1000, 1000 + count))
    return {"median": float(np.median(losses)), "least": losses[0], "largest": losses[-1]}


def tuned(cls, data, draws):
    def median(setting):
        make = functools.partial(baseline, cls, *setting)
        return np.median([final_loss(make, data, seed) for seed in range(draws)])

    return min(((rate, schedule) for rate in RATES for schedule in ("none", "cosine")), key=median)


def milliseconds(hidden, rounds, data):
    """By name, medians over rounds in alternation: of a training step, and of the optimizer's alone."""
    images, labels = (x[:128] for x in data)
    makes = {name: functools.partial(learned, name) for name in LEARNED}
    makes |= {"Adam": lambda model: torch.optim.Adam(model.parameters())}
    if hasattr(torch.optim, "Muon"):
        makes["Muon"] = lambda model: torch.optim.Muon([p for p in model.parameters() if p.ndim == 2])
    models = {name: network(hidden) for name in makes}
    optimizers = {name: makes[name](model) for name, model in models.items()}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in makes}
    for _ in range(rounds):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            gradients(models[name], optimizer, images, labels)
            middle = time.perf_counter()
            optimizer.step()
            end = time.perf_counter()
            spent[name].append((1e3 * (end - start), 1e3 * (end - middle)))
    return {name: np.median(pairs, axis=0).tolist() for name, pairs in spent.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--tuning-draws", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("."))
    arguments = parser.parse_args()
    results.make_folder(arguments.out)
    data = digits()
    losses: dict[str, dict[str, Any]] = {
        name: judge(functools.partial(learned, name), data, arguments.draws) for name in LEARNED
    }
    for name, cls in BASELINES.items():
        rate, schedule = tuned(cls, data, arguments.tuning_draws)
        losses[name] = judge(functools.partial(baseline, cls, rate, schedule), data, arguments.draws)
        losses[name] |= {"rate": rate, "schedule": schedule}
    for name, row in losses.items():
        print(
            f"{name:12} {row['median']:.3f} [{row['least']:.3f}, {row['largest']:.3f}]", row.get("rate", "")
        )
    times = {hidden: milliseconds(hidden, arguments.rounds, data) for hidden in (32, 256, 2048)}
    for hidden, row in times.items():
        for name, (step, alone) in row.items():
            of_step, of_optimizer = (a / b for a, b in zip((step, alone), row["Adam"], strict=True))
            print(
                f"784-{hidden}-10, {name}: {of_step:.2f} times Adam, the optimizer {of_optimizer:.1f} times"
            )
    found = {"losses": losses, "milliseconds": times, "torch": torch.__version__}
    results.keep(arguments.out / "torch-digits.json", found)


if __name__ == "__main__":
    main()
