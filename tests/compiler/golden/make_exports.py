"""Writes exports/: three nets as PyTorch's two exporters write them, and PyTorch's gradients of a cross-entropy.

Run by hand where PyTorch and onnxscript are installed: `python tests/compiler/golden/make_exports.py`. The tests
read the files only: `<net>-<exporter>-<opset>.onnx`, and `<net>.npz` with `x`, `label`, `loss`, and `weight/<name>`
and `gradient/<name>` of each parameter. The nets are chosen for their operators, not for any use.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

FOLDER = Path(__file__).parent / "exports"
EXPORTS = {
    "decoder": (("dynamo", 18), ("dynamo", 23)),
    "encoder": (("script", 17), ("dynamo", 23)),
    "image": (("script", 13), ("dynamo", 23)),
}


class Decoder(nn.Module):
    """RMS and layer normalisation, causal attention with grouped heads, GELU by tanh."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, size) for size in (width, width // 2, width // 2))
        self.output, self.before, self.between = nn.Linear(width, width), nn.RMSNorm(width), nn.LayerNorm(width)
        self.dense = nn.Sequential(nn.Linear(width, 12), nn.GELU(approximate="tanh"), nn.Linear(12, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        split = [part(y).unflatten(2, (-1, 2)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        mixed = functional.scaled_dot_product_attention(*split, is_causal=True, enable_gqa=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return self.head((x + self.dense(self.between(x))).mean(1))


class Encoder(nn.Module):
    """PyTorch's own encoder layer, with its dropout switched off."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, 4, 12, batch_first=True, activation="gelu", dropout=0.1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[:, 0])


class Image(nn.Module):
    """Group and instance normalisation, every activation, norms, log-sum-exp and an Einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.groups, self.instances = nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)
        self.slopes, self.head = nn.PReLU(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        f = functional
        x = f.mish(self.instances(self.second(f.silu(self.groups(self.first(x))))))
        x = self.slopes(x) + f.hardswish(x) + f.elu(x) + f.selu(x) + f.celu(x, 0.5) + f.softplus(x) + f.softsign(x)
        x = x + f.relu6(x) + f.leaky_relu(x) + f.hardsigmoid(x) + f.logsigmoid(x) + f.gelu(x)
        y = (f.normalize(x, dim=1) * x).mean((2, 3))
        y = torch.einsum("bi,bi->bi", y, y).clamp(max=3) + torch.logsumexp(y, 1, keepdim=True) + y.norm(dim=1, keepdim=True)
        return self.head(y)


def write(name: str, net: nn.Module, x: Tensor) -> None:
    label = torch.arange(4)
    with torch.no_grad():  # equal weights would be written as one
        for parameter in net.parameters():
            parameter += 0.3 * torch.rand_like(parameter)
    loss = functional.cross_entropy(net.eval()(x), label)
    loss.backward()
    arrays = {"x": x, "label": label, "loss": loss.detach()}
    for key, parameter in net.named_parameters():
        arrays |= {f"weight/{key}": parameter.detach(), f"gradient/{key}": parameter.grad}
    np.savez_compressed(FOLDER / f"{name}.npz", **{key: tensor.numpy() for key, tensor in arrays.items()})
    for exporter, opset in EXPORTS[name]:
        path, dynamo = FOLDER / f"{name}-{exporter}-{opset}.onnx", exporter == "dynamo"
        only_dynamo = {"external_data": False, "verbose": False} if dynamo else {}
        torch.onnx.export(net, (x,), path, opset_version=opset, dynamo=dynamo, input_names=["x"], **only_dynamo)
        onnx.save(bare(onnx.load(path)), path)


def bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what the exporter noted of source files."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    model.graph.doc_string = model.doc_string = ""
    for part in [*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output]:
        part.doc_string = ""
        del part.metadata_props[:]
    return model


if __name__ == "__main__":
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    write("decoder", Decoder(), torch.randn(4, 6, 8))
    write("encoder", Encoder(), torch.randn(4, 6, 8))
    write("image", Image(), torch.randn(4, 3, 6, 6))
