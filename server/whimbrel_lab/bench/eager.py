"""The models of `models.py` for PyTorch, as a worker: the baseline that a train step is measured beside.

Run by an interpreter that has torch and numpy; nothing of whimbrel is imported, and whimbrel never imports this file.
`python eager.py MODEL THREADS DATA.npz` reads weights and one batch from the file, then answers each line
`COUNT` on standard input with one JSON line: the seconds of so many plain SGD steps (eager mode), and the memory.
"""

# mypy: ignore-errors
import json
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def _memory_kb(field):
    with open("/proc/self/status") as status:  # noqa: PTH123
        return int(next(line for line in status if line.startswith(field)).split()[1])


LOADED_KB = _memory_kb("VmRSS")


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense0, self.dense1, self.dense2 = nn.Linear(784, 200), nn.Linear(200, 200), nn.Linear(200, 10)

    def forward(self, x):
        return self.dense2(F.relu(self.dense1(F.relu(self.dense0(x)))))


class FedCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(1, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2)
        self.dense0, self.dense1 = nn.Linear(3136, 512), nn.Linear(512, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv0(x)), 2)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.dense1(F.relu(self.dense0(x.flatten(1))))


def _norm(module, name, convolution, x):
    return getattr(module, name)(getattr(module, convolution)(x))


class DsCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 64, (10, 4), 2, bias=False), nn.BatchNorm2d(64)
        for block in range(4):
            setattr(self, f"deep{block}", nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False))
            setattr(self, f"point{block}", nn.Conv2d(64, 64, 1, bias=False))
            setattr(self, f"deep_norm{block}", nn.BatchNorm2d(64))
            setattr(self, f"point_norm{block}", nn.BatchNorm2d(64))
        self.dense = nn.Linear(64, 12)

    def forward(self, x):
        x = F.relu(_norm(self, "stem_norm", "stem", F.pad(x, (1, 2, 4, 5))))
        for block in range(4):
            x = F.relu(_norm(self, f"deep_norm{block}", f"deep{block}", x))
            x = F.relu(_norm(self, f"point_norm{block}", f"point{block}", x))
        return self.dense(x.mean((2, 3)))


class Inverted(nn.Module):
    def __init__(self, channels, wide, out, stride):
        super().__init__()
        self.shortcut = stride == 1 and channels == out
        if wide != channels:
            self.expand, self.norm0 = nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.deep, self.norm1 = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide)
        self.project, self.norm2 = nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x):
        y = F.relu6(_norm(self, "norm0", "expand", x)) if hasattr(self, "expand") else x
        y = _norm(self, "norm2", "project", F.relu6(_norm(self, "norm1", "deep", y)))
        return x + y if self.shortcut else y


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        channels, number = 16, 0
        for expansion, out, blocks, stride in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 2, 2)):
            for block in range(blocks):
                made = Inverted(channels, expansion * channels, out, 1 if block else stride)
                setattr(self, f"block{number}", made)
                channels, number = out, number + 1
        self.count = number
        self.head, self.head_norm = nn.Conv2d(channels, 256, 1, bias=False), nn.BatchNorm2d(256)
        self.dense = nn.Linear(256, 10)

    def forward(self, x):
        x = F.relu6(_norm(self, "stem_norm", "stem", x))
        for number in range(self.count):
            x = getattr(self, f"block{number}")(x)
        return self.dense(F.relu6(_norm(self, "head_norm", "head", x)).mean((2, 3)))


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm0, self.norm1 = nn.LayerNorm(width), nn.LayerNorm(width)
        for part in ("query", "key", "value", "out"):
            setattr(self, part, nn.Linear(width, width))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, heads=4):
        y = self.norm0(x)
        query, key, value = (
            projected(y).view(*y.shape[:2], heads, -1).transpose(1, 2) for projected in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.narrow(F.gelu(self.wide(self.norm1(x))))


class Transformer(nn.Module):
    def __init__(self, vocabulary=2000, width=128, tokens=64):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(1, tokens, width))
        self.layer0, self.layer1, self.norm = Layer(width), Layer(width), nn.LayerNorm(width)
        self.dense = nn.Linear(width, vocabulary)

    def forward(self, x):
        return self.dense(self.norm(self.layer1(self.layer0(self.embedding(x) + self.position))))


class Lstm(nn.Module):
    def __init__(self, vocabulary=2000, width=128, hidden=256):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.dense = nn.Linear(hidden, vocabulary)

    def forward(self, x):
        return self.dense(self.lstm(self.embedding(x))[0])


MODELS = {"mlp": Mlp, "fedcnn": FedCnn, "dscnn": DsCnn, "mbv2": MobileNet, "transformer": Transformer, "lstm": Lstm}


def _gates(array):
    """ONNX's order of gates (i, o, f, c) in torch's (i, f, c, o)."""
    parts = np.split(array, 4)
    return np.concatenate([parts[0], parts[2], parts[3], parts[1]])


def _state(weights):
    """The weights under torch's names and in its layouts."""
    state = {}
    for name, array in weights.items():
        if name.endswith(".matrix"):
            state[name.replace(".matrix", ".weight")] = array.T
        elif name in ("W", "R"):
            state[{"W": "lstm.weight_ih_l0", "R": "lstm.weight_hh_l0"}[name]] = _gates(array[0])
        elif name == "B":
            for key, part in zip(("lstm.bias_ih_l0", "lstm.bias_hh_l0"), np.split(array[0], 2), strict=True):
                state[key] = _gates(part)
        else:
            state[name] = array
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}


class Run:
    """Plain SGD on one batch."""

    def __init__(self, model, arrays, rate):
        self.model = MODELS[model]()
        given = _state({name[2:]: array for name, array in arrays.items() if name.startswith("w:")})
        wanted = {name for name in self.model.state_dict() if not name.endswith("num_batches_tracked")}
        assert wanted <= set(given), f"no weights for {wanted - set(given)}"
        self.model.load_state_dict({name: given[name] for name in wanted}, strict=False)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate)
        self.x, self.label = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["label"])

    def step(self):
        self.optimizer.zero_grad()
        logits = self.model(self.x)
        loss = F.cross_entropy(logits.flatten(0, -2), self.label.flatten())
        loss.backward()
        self.optimizer.step()
        return loss

    def steps(self, count):
        wall, busy = time.perf_counter(), time.process_time()
        for _ in range(count):
            loss = self.step()
        return time.perf_counter() - wall, time.process_time() - busy, float(loss.detach())


def main():
    model, threads, path = sys.argv[1:4]
    torch.set_num_threads(int(threads))
    with np.load(path) as arrays:
        run = Run(model, dict(arrays), float(arrays["rate"]))
    for line in sys.stdin:
        wall, busy, loss = run.steps(int(line))
        answer = {"wall": wall, "busy": busy, "loss": loss, "loaded_kb": LOADED_KB, "peak_kb": _memory_kb("VmHWM")}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
