"""Writes the ONNX files beside this file, as three exporters make them: the models of `docs/bring-your-model.md`.

Run by hand where PyTorch, scikit-learn and skl2onnx are installed: `python tests/data/make.py`. The tests and the guide's
examples read the files only; a test compares the code between the marks with what the guide prints.
"""

import os
from pathlib import Path

import numpy as np
import onnx
from sklearn.datasets import load_digits

HERE = Path(__file__).parent


def write_sklearn() -> None:
    """digits-mlp.onnx: a scikit-learn classifier, fitted on 300 digits."""
    # begin: sklearn
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    model = MLPClassifier((32,), max_iter=500, random_state=1).fit(images[:300], labels[:300])
    exported = to_onnx(model, images[:1], options={"zipmap": False})
    Path("digits-mlp.onnx").write_bytes(exported.SerializeToString())
    # end


def write_cnn() -> None:
    """digits-cnn.onnx: a PyTorch net with batch normalisation, trained on the digits 0 to 4."""
    # begin: cnn
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()

            def block(inputs: int, outputs: int) -> nn.Module:
                return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

            self.features = nn.Sequential(block(1, 16), nn.MaxPool2d(2), block(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(32, classes)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.head(self.features(image))

    # end
    torch.manual_seed(1)
    images, labels = load_digits(return_X_y=True)
    few = labels[:900] < 5
    x, t = torch.tensor(images[:900][few] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels[:900][few])
    net = Net(classes=5)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), t).backward()
        optimizer.step()
    # begin: export
    net.eval()
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        net,
        (torch.zeros(2, 1, 8, 8),),
        "digits-cnn.onnx",
        dynamo=True,
        dynamic_shapes=[{0: batch}],
        input_names=["image"],
        output_names=["scores"],
        external_data=False,
    )
    # end


def write_transformer() -> None:
    """sentences.onnx: a PyTorch encoder over 16 words, with a class for each sentence; not trained."""
    # begin: transformer
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self, words: int = 500, width: int = 32, classes: int = 4) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(words, width), nn.Parameter(0.1 * torch.randn(16, width))
            layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, activation="gelu")
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(width, classes)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(self.words(ids) + self.places).mean(1))

    # end
    torch.manual_seed(1)
    net = Encoder().eval()
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        net,
        (torch.zeros(2, 16, dtype=torch.int64),),
        "sentences.onnx",
        dynamo=True,
        dynamic_shapes=[{0: batch}],
        input_names=["ids"],
        output_names=["scores"],
        external_data=False,
    )


def strip(path: Path) -> None:
    """Remove what the exporter tells about the machine it ran on; it is most of a small file."""
    model = onnx.load(path)
    for part in [model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output]:
        del part.metadata_props[:]
        part.doc_string = ""
    del model.metadata_props[:], model.graph.value_info[:]
    onnx.save(model, path)


if __name__ == "__main__":
    os.chdir(HERE)
    for write in (write_sklearn, write_cnn, write_transformer):
        write()
    for path in Path().glob("*.onnx"):
        strip(path)
