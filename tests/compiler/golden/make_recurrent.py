"""Writes recurrent.npz beside this file: known answers of recurrent layers, computed by PyTorch in float64.

Run by hand where PyTorch is installed: `python tests/compiler/golden/make_recurrent.py`. For each case the file holds
ONNX's operands `<case>/X`, `W`, `R`, `B`, `initial_h` (`initial_c`) and `sequence_lens`, the outputs `<case>/Y`, `Y_h`
(`Y_c`), and for the sum of all outputs times `<case>/to_Y`, `to_Y_h` (`to_Y_c`) the gradient `<case>/d_X`, ... by each
operand. All in ONNX's layout and order of gates. Nothing here knows the compiler.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import rnn

STEPS, BATCH, INPUTS, HIDDEN = 4, 3, 2, 3
LENGTHS = torch.tensor([4, 2, 3])

# name: (layer, its rows of gates in ONNX's order, settings)
CASES: dict[str, tuple[Any, list[int], dict[str, Any]]] = {
    "LSTM": (nn.LSTM, [0, 3, 1, 2], {}),
    "LSTM both ways": (nn.LSTM, [0, 3, 1, 2], {"bidirectional": True}),
    "GRU": (nn.GRU, [1, 0, 2], {}),
    "GRU both ways": (nn.GRU, [1, 0, 2], {"bidirectional": True}),
    "RNN": (nn.RNN, [0], {}),
    "RNN both ways": (nn.RNN, [0], {"bidirectional": True, "nonlinearity": "relu"}),
}


def known_answer(kind: Any, order: list[int], settings: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    layer = kind(INPUTS, HIDDEN, **settings)
    directions = 2 if settings.get("bidirectional") else 1
    lengths = LENGTHS if directions == 2 else torch.full((BATCH,), STEPS)
    x = random(rng, STEPS, BATCH, INPUTS)
    states = [random(rng, directions, BATCH, HIDDEN) for _ in range(2 if kind is nn.LSTM else 1)]
    packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, last = layer(packed, tuple(states) if kind is nn.LSTM else states[0])
    y, _ = rnn.pad_packed_sequence(y, total_length=STEPS)
    outputs = dict(
        zip(("Y", "Y_h", "Y_c"), (by_direction(y, directions), *(last if kind is nn.LSTM else [last])), strict=False)
    )
    factors = {name: random(rng, *value.shape).detach() for name, value in outputs.items()}
    sum((value * factors[name]).sum() for name, value in outputs.items()).backward()
    operands = dict(zip(("initial_h", "initial_c"), states, strict=False)) | {"X": x}
    found = {name: value.detach() for name, value in operands.items()} | {f"d_{n}": v.grad for n, v in operands.items()}
    weights = {name: value.detach() for name, value in layer.named_parameters()}
    found |= in_onnx_form(weights, order, directions)
    slopes = in_onnx_form({name: value.grad for name, value in layer.named_parameters()}, order, directions)
    found |= {f"d_{name}": value for name, value in slopes.items()} | {f"to_{n}": v for n, v in factors.items()}
    found |= {name: value.detach() for name, value in outputs.items()}
    return {name: value.numpy() for name, value in found.items()} | {"sequence_lens": lengths.numpy().astype(np.int32)}


def random(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.tensor(rng.normal(size=shape), requires_grad=True)


def by_direction(y: torch.Tensor, directions: int) -> torch.Tensor:
    """`[T, D, N, H]` of torch's `[T, N, D H]`."""
    return y.reshape(STEPS, BATCH, directions, HIDDEN).transpose(1, 2)


def in_onnx_form(values: dict[str, torch.Tensor], order: list[int], directions: int) -> dict[str, torch.Tensor]:
    def stacked(name: str) -> torch.Tensor:
        each = [values[name + suffix] for suffix in ("_l0", "_l0_reverse")[:directions]]
        return torch.stack([torch.cat([value.chunk(len(order))[gate] for gate in order]) for value in each])

    bias = torch.cat([stacked("bias_ih"), stacked("bias_hh")], dim=1)
    return {"W": stacked("weight_ih"), "R": stacked("weight_hh"), "B": bias}


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(6)
    numbers = np.random.default_rng(6)
    answers = {f"{name}/{key}": value for name, case in CASES.items() for key, value in known_answer(*case, numbers).items()}
    np.savez_compressed(Path(__file__).parent / "recurrent.npz", **answers)
