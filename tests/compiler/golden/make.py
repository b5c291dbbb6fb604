"""Writes losses.npz and optimisers.npz beside this file: known answers computed by PyTorch in float64.

Run by hand where PyTorch is installed: `python tests/compiler/golden/make.py`. The tests read the files only. What a
file holds is said at `write_losses` and `write_optimisers`; nothing here knows the compiler.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

HERE = Path(__file__).parent
STEPS, BATCH, SIZES = 20, 6, (5, 8, 3)
KEPT = (0, 4, STEPS - 1)  # the steps after which the weights are written down
LR = 0.05

# name: (torch's optimiser with its settings, largest norm of the gradient, FedProx' mu)
OPTIMISERS: dict[str, tuple[Callable[..., Any], dict[str, Any], float, float]] = {
    "sgd": (torch.optim.SGD, {}, 0.0, 0.0),
    "sgd decayed": (torch.optim.SGD, {"weight_decay": 0.1}, 0.0, 0.0),
    "sgd clipped": (torch.optim.SGD, {}, 0.3, 0.0),
    "sgd clipped decayed proximal": (torch.optim.SGD, {"weight_decay": 0.1}, 0.3, 0.5),
    "momentum": (torch.optim.SGD, {"momentum": 0.8}, 0.0, 0.0),
    "momentum clipped decayed": (torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.1}, 0.3, 0.0),
    "nesterov": (torch.optim.SGD, {"momentum": 0.8, "nesterov": True}, 0.0, 0.0),
    "nesterov decayed": (torch.optim.SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}, 0.0, 0.0),
    "adam": (torch.optim.Adam, {"betas": (0.8, 0.95), "eps": 1e-6}, 0.0, 0.0),
    "adam clipped decayed": (torch.optim.Adam, {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}, 0.3, 0.0),
    "adamw": (torch.optim.AdamW, {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}, 0.0, 0.0),
    "adamw proximal": (torch.optim.AdamW, {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}, 0.0, 0.5),
}


def write_optimisers(rng: np.random.Generator) -> None:
    """`x`, `label`, `weight`, `lr` of each step; `start/<parameter>`; and for each optimiser `<name>/loss`, before each
    step, and `<name>/<parameter>` after the steps KEPT."""
    found: dict[str, Any] = {
        "x": rng.normal(size=(STEPS, BATCH, SIZES[0])),
        "label": rng.integers(0, SIZES[-1], (STEPS, BATCH)),
        "weight": rng.uniform(0.2, 2.0, (STEPS, BATCH)),
        "lr": LR * (1.0 - np.arange(STEPS) / (2 * STEPS)),
        "kept": np.array(KEPT),
    }
    found["weight"][:, 0] = 0.0  # a padded row in each batch
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(SIZES), start=1):
        found[f"start/dense{layer}.weight"] = rng.normal(size=(fan_out, fan_in)) / np.sqrt(fan_in)
        found[f"start/dense{layer}.bias"] = rng.normal(size=fan_out) * 0.1
    # the weights enter a float32 model first, so they must be float32 numbers
    found |= {key: value.astype(np.float32).astype(np.float64) for key, value in found.items() if key.startswith("start/")}
    for name, setting in OPTIMISERS.items():
        found |= {f"{name}/{key}": value for key, value in trajectory(found, *setting).items()}
    np.savez_compressed(HERE / "optimisers.npz", **found)


def trajectory(found: dict[str, Any], kind: Any, settings: dict[str, Any], norm: float, mu: float) -> dict[str, Any]:
    names = [key.removeprefix("start/") for key in found if key.startswith("start/")]
    weights = {name: torch.tensor(found[f"start/{name}"], requires_grad=True) for name in names}
    anchors = {name: value.detach().clone() for name, value in weights.items()}
    optimiser = kind(weights.values(), lr=LR, **settings)
    losses, kept = [], []
    for step in range(STEPS):
        x, label, weight = (torch.tensor(found[key][step]) for key in ("x", "label", "weight"))
        hidden = torch.relu(functional.linear(x, weights["dense1.weight"], weights["dense1.bias"]))
        logits = functional.linear(hidden, weights["dense2.weight"], weights["dense2.bias"])
        loss = (weight * functional.cross_entropy(logits, label, reduction="none")).sum() / weight.sum()
        pull = sum(((value - anchors[name]) ** 2).sum() for name, value in weights.items())
        optimiser.zero_grad()
        (loss + mu / 2 * pull).backward()
        if norm:
            torch.nn.utils.clip_grad_norm_(weights.values(), norm)
        optimiser.param_groups[0]["lr"] = found["lr"][step]
        optimiser.step()
        losses.append(loss.item())
        kept.append({name: value.detach().numpy().copy() for name, value in weights.items()})
    return {"loss": np.array(losses), **{name: np.stack([kept[step][name] for step in KEPT]) for name in names}}


def write_losses(rng: np.random.Generator) -> None:
    """For each case `<name>/output`, `label`, `weight`, `smoothing`, `loss` (of each position) and `gradient` of the
    weighted mean by the output."""
    found = {}
    for name, (output, label, smoothing, formula) in loss_cases(rng).items():
        y = torch.tensor(output, requires_grad=True)
        losses = formula(y, None if label is None else torch.tensor(label))
        weight = rng.uniform(0.2, 2.0, tuple(losses.shape))
        weight.reshape(-1)[-1] = 0.0
        share = torch.tensor(weight)
        ((share * losses).sum() / share.sum()).backward()
        found |= {f"{name}/output": output, f"{name}/weight": weight, f"{name}/smoothing": np.array(smoothing)}
        found |= {f"{name}/loss": losses.detach().numpy(), f"{name}/gradient": y.grad.numpy()}
        if label is not None:
            found[f"{name}/label"] = label
    np.savez_compressed(HERE / "losses.npz", **found)


def loss_cases(rng: np.random.Generator) -> dict[str, tuple[Any, Any, float, Any]]:
    """name: (output, label, smoothing, formula of output and label). The loss is the first word of the name."""

    def normal(*shape: int) -> Any:
        return rng.normal(size=shape) * 2.0

    def ids(classes: int, *shape: int) -> Any:
        return rng.integers(0, classes, shape)

    def shares(*shape: int) -> Any:
        return rng.dirichlet(np.ones(shape[-1]), shape[:-1])

    def classes(smoothing: float) -> Any:
        return lambda y, t: functional.cross_entropy(y, t, reduction="none", label_smoothing=smoothing)

    def tokens(smoothing: float) -> Any:
        return lambda y, t: classes(smoothing)(y.movedim(-1, 1), t)

    def binary(smoothing: float) -> Any:
        def formula(y: Any, t: Any) -> Any:
            mixed = t * (1 - smoothing) + smoothing / 2
            return functional.binary_cross_entropy_with_logits(y, mixed, reduction="none").mean(1)

        return formula

    def mean(loss: Any) -> Any:
        return lambda y, t: loss(y, t, reduction="none").flatten(1).mean(1)

    def triplet(y: Any, _: Any) -> Any:
        return functional.triplet_margin_loss(y[:, 0], y[:, 1], y[:, 2], reduction="none")

    def hard_triplet(y: Any, t: Any) -> Any:
        """Of the first three rows alone: the last has weight 0. Classes 0, 1, 0: each row's choices can be named."""
        d = (y[:, None] - y[None] + 1e-6).norm(dim=-1)
        nearest = torch.stack([d[0, 1], torch.minimum(d[1, 0], d[1, 2]), d[2, 1]])
        hardest = torch.stack([torch.maximum(d[0, 2], d[0, 0]), d[1, 1], torch.maximum(d[2, 0], d[2, 2])])
        return torch.cat([torch.relu(hardest - nearest + 1), y[3:, 0] * 0])

    def ctc(y: Any, t: Any) -> Any:
        """Per frame. The last row has a frame less than the others, because its last weight is 0: too few for its label."""
        count, steps = y.shape[:2]
        frames = torch.tensor([steps] * (count - 1) + [steps - 1])
        log_p, sizes = functional.log_softmax(y, -1).transpose(0, 1), (t > 0).sum(1)
        losses = functional.ctc_loss(log_p, t.clamp(min=0), frames, sizes, reduction="none", zero_infinity=True)
        return (losses / frames)[:, None].expand(count, steps)

    sequences = np.array([[1, 1, 2, 2, 3], [4, -1, -1, -1, -1], [-1, -1, -1, -1, -1], [3, 3, 3, 3, 3], [3, 3, 3, 3, 3]])
    binary_label = (rng.random((6, 4)) < 0.5).astype(np.float64)
    return {
        "cross_entropy": (normal(6, 5), ids(5, 6), 0.0, classes(0.0)),
        "cross_entropy smoothed": (normal(6, 5), ids(5, 6), 0.1, classes(0.1)),
        "cross_entropy over pixels": (normal(3, 4, 2, 3), ids(4, 3, 2, 3), 0.2, classes(0.2)),
        "soft_cross_entropy": (normal(6, 5), shares(6, 5), 0.0, classes(0.0)),
        "soft_cross_entropy smoothed": (normal(6, 5), shares(6, 5), 0.3, classes(0.3)),
        "token_cross_entropy": (normal(3, 4, 5), ids(5, 3, 4), 0.0, tokens(0.0)),
        "token_cross_entropy smoothed": (normal(3, 4, 5), ids(5, 3, 4), 0.1, tokens(0.1)),
        "bce_with_logits": (normal(6, 4) * 10, binary_label, 0.0, binary(0.0)),
        "bce_with_logits smoothed": (normal(6, 4), binary_label, 0.2, binary(0.2)),
        "mse": (normal(4, 3, 2), normal(4, 3, 2), 0.0, mean(functional.mse_loss)),
        "mse of one number": (normal(5), normal(5), 0.0, lambda y, t: (y - t) ** 2),
        "l1": (normal(4, 3), normal(4, 3), 0.0, mean(functional.l1_loss)),
        "huber": (normal(4, 3), normal(4, 3), 0.0, mean(functional.huber_loss)),
        "cosine": (normal(5, 7), normal(5, 7), 0.0, lambda y, t: 1 - functional.cosine_similarity(y, t, dim=-1)),
        "triplet": (normal(4, 3, 6) * 0.5, None, 0.0, triplet),
        "hard_triplet": (normal(4, 5) * 0.5, np.array([0, 1, 0, 1]), 0.0, hard_triplet),
        "output of each example": (normal(5), None, 0.0, lambda y, _: y),
        "ctc": (normal(5, 9, 5), sequences, 0.0, ctc),
    }


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    write_optimisers(np.random.default_rng(1))
    write_losses(np.random.default_rng(2))
