"""From settings to what comes of them: plan, fixed tensors, a device's update, the next version, the published model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from whimbrel.actions import TrainingJob
from whimbrel.examples import Examples, gather
from whimbrel.preparing import held_tensors
from whimbrel.trainer import Evaluator, Trainer
from whimbrel_lab.nets.layers import Builder
from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.encoding import Encoding
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.primitives import sha256
from whimbrel_server import plans
from whimbrel_server.plans import Draft
from whimbrel_server.rounds import aggregate, headers
from whimbrel_server.rounds.aggregate import WindowTotal
from whimbrel_server.settings import TaskSettings

FEATURES, WIDE, CLASSES, DEVICES = 6, 48, 3, 4
LANE = bytes(32)


def net(norm: bool = False) -> bytes:
    """Two dense layers, with a batch normalisation between them if asked for: "x" [N, 6] to "y" [N, 3]."""
    b = Builder(1)
    x = b.dense("body", "x", FEATURES, WIDE)
    x = b.op("Relu", b.batch_norm("norm", x, WIDE) if norm else x)
    x = b.op("Relu", b.dense("middle", x, WIDE, WIDE))
    logits = b.dense("head", x, WIDE, CLASSES)
    graph = b.graph({"x": (onnx.TensorProto.FLOAT, ["N", FEATURES])}, ("y", ["N", CLASSES]), logits, "net")
    return bytes(graph.SerializeToString())


def columns(seed: int, count: int = 40) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, count)
    x = rng.normal(0, 0.5, (count, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[label]
    return {"x": x.astype(np.float32), "label": label}


def settings(**changes: Any) -> TaskSettings:
    return TaskSettings.from_json(
        {"batch": 8, "epochs": 4, "scale": 8192.0, "n_max": 8, "momentum": 0.9, "lr": 0.02, **changes}
    )


class Round:
    """One round without masks: every device trains version 1, the sum makes version 2."""

    def __init__(self, model: bytes, chosen: TaskSettings) -> None:
        self.model, self.settings = model, chosen
        made: Draft = plans.draft(model, chosen, bytes(16), "task", 0)
        self.plan, self.fixed = made.plan, made.fixed
        self.body = wire.decode(made.plan.body, m.PlanBody)
        self.first = aggregate.first_version(plans.first_parameters(model, chosen)).state
        self.held = held_tensors(self.body, made.fixed, None) if made.fixed else {}
        self.header = headers.first_header(chosen, self.first.master.size)
        self.trainers = [self._trained(seed) for seed in range(DEVICES)]
        self.second = self._summed()

    def examples(self, seed: int) -> Examples:
        return gather([columns(seed)], self.body.inputs)

    def _trained(self, seed: int) -> Trainer:
        base = tuple(aggregate.parameters(self.first).values())
        trainer = Trainer(TrainingJob(b"b", self.body, base, self.header, bytes([seed]) * 32, self.held), self.examples(seed))
        while not trainer.done:
            trainer.run(60.0)
        return trainer

    def _summed(self) -> aggregate.ModelState:
        encoding = Encoding.of(self.plan, self.body, self.header)
        half = np.full(encoding.size, 0.5)
        values = sum(encoding.encode(one.measured(), LANE, half).values.astype(np.int64) for one in self.trainers)
        window = WindowTotal(bytes(32), bytes(32), np.asarray(values), DEVICES, DEVICES, LANE)
        made = aggregate.next_version(self.first, [window], encoding, self.settings, plans.statistics(self.body))
        self.metrics = made.metrics
        return made.state

    def mean(self) -> npt.NDArray[np.float32]:
        return np.mean([one.update() for one in self.trainers], axis=0)

    def loss(self, state: aggregate.ModelState) -> float:
        parameters = tuple(aggregate.parameters(state).values())
        return Evaluator(self.body, held=self.held).evaluate(parameters, self.examples(99)).loss

    def published(self, state: aggregate.ModelState) -> npt.NDArray[np.float32]:
        model = plans.inference_model(self.model, self.settings, aggregate.parameters(state))
        return np.asarray(ort.InferenceSession(model).run(None, {"x": columns(99)["x"]})[0])

    def published_loss(self, state: aggregate.ModelState) -> float:
        scores, label = self.published(state).astype(np.float64), columns(99)["label"]
        return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(len(label)), label]))


KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "all weights": (False, {}),
    "adamw, clipped, smoothed": (
        False,
        {"optimizer": "adamw", "momentum": 0.0, "weight_decay": 0.01, "clip_norm": 1.0, "lr": 0.01, "beta2": 0.99},
    ),
    "nesterov on the last layers": (False, {"optimizer": "nesterov", "train": ["last:2"]}),
    "adapters": (False, {"lora_rank": 2, "lora_patterns": ["middle.*"], "train": ["head.*"], "lr": 0.05}),
    "adapters with a frozen factor": (False, {"lora_rank": 2, "lora_patterns": ["middle.*"], "lora_freeze_a": True, "lr": 0.1}),
    "batch statistics": (True, {"batch_norm": "train"}),
    "a bias that stays": (False, {"local": ["middle.bias"]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_train_learns_and_is_published_as_it_was_evaluated(kind: str) -> None:
    norm, changes = KINDS[kind]
    done = Round(net(norm), settings(**changes))
    assert done.loss(done.second) < 0.8 * done.loss(done.first)
    if not done.settings.local:
        assert done.published_loss(done.first) == pytest.approx(done.loss(done.first), rel=1e-4)
        assert done.published_loss(done.second) == pytest.approx(done.loss(done.second), rel=1e-4)


def test_frozen_weights_travel_once_and_not_in_the_graph() -> None:
    made = Round(net(), settings(train=["head.*"], local=["head.bias"]))
    assert [(one.role, one.name) for one in made.body.fixed][-1] == ("local", "head.bias")
    assert {one.name for one in made.body.fixed if one.role == "frozen"} == {"body.weight", "middle.weight"}
    assert made.body.fixed_blob == m.BlobRef(sha256(made.fixed or b""), len(made.fixed or b""))
    assert len(made.body.train_graph) < 4000
    assert list(plans.shapes(made.body)) == ["head.weight"]
    assert made.plan.d == CLASSES * WIDE == len(made.trainers[0].update())
    (bias,) = made.trainers[0].local()
    assert np.any(bias != 0)


def test_the_servers_rate_is_for_parameters_and_not_for_running_statistics() -> None:
    done = Round(net(True), settings(batch_norm="train", server_lr=0.5, scale=1024.0))
    assert done.body.drop_ragged
    names = plans.statistics(done.body)
    assert names.running == {"norm.running_mean", "norm.running_var"}
    assert names.variances == {"norm.running_var"}
    sizes = [np.prod(shape, dtype=int) for shape in done.first.shapes.values()]
    rate = np.repeat([1.0 if name in names.running else 0.5 for name in done.first.shapes], sizes)
    assert np.allclose(done.second.master, done.first.master + rate * done.mean(), atol=1e-3)


def test_no_rounding_makes_a_variance_negative() -> None:
    done = Round(net(True), settings(batch_norm="train"))
    encoding = Encoding.of(done.plan, done.body, done.header)
    down = np.full(encoding.spec.d, -encoding.spec.limit, np.int64)
    window = WindowTotal(bytes(32), bytes(32), down, 1, 1, LANE)
    plain = replace(encoding, rotate=False)
    after = aggregate.next_version(done.first, [window], plain, done.settings, plans.statistics(done.body)).state
    assert np.all(aggregate.parameters(after)["norm.running_var"] >= 0)
    assert np.all(aggregate.parameters(after)["norm.running_mean"] < 0)


def test_a_new_head_has_the_asked_classes_and_starts_the_same_for_everybody() -> None:
    chosen = settings(head=5, train=["head.*"])
    first = [plans.first_parameters(net(), chosen) for _ in range(2)]
    assert {name: value.shape for name, value in first[0].items()} == {"head.weight": (5, WIDE), "head.bias": (5,)}
    assert all(np.array_equal(first[0][name], first[1][name]) for name in first[0])
    model = plans.inference_model(net(), chosen, first[0])
    assert ort.InferenceSession(model).run(None, {"x": columns(1)["x"]})[0].shape == (40, 5)


def test_metrics_of_every_kind_arrive_as_means() -> None:
    done = Round(net(), settings(metrics=["loss", "accuracy", "top2"], epochs=1))
    measured = [one.measured().metrics for one in done.trainers]
    assert done.metrics == pytest.approx({name: np.mean([one[name] for one in measured]) for name in done.metrics}, abs=1e-3)
    assert done.metrics["accuracy"] <= done.metrics["top2"] <= 1


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"loss": "hinge"}, Code.CONFIGURATION, "token_cross_entropy"),
        ({"optimizer": "nesterov", "momentum": 0.0}, Code.CONFIGURATION, "momentum"),
        ({"optimizer": "adam"}, Code.CONFIGURATION, "beta1"),
        ({"lora_freeze_a": True}, Code.CONFIGURATION, "lora_rank"),
        ({"metrics": ["top3"]}, Code.CONFIGURATION, "top3"),
        ({"metrics": ["mae"]}, Code.CONFIGURATION, "mae"),
        ({"train": ["last:0"]}, Code.MODEL_REFUSED, "last:"),
        ({"dims": {"z": [4, 2]}}, Code.MODEL_REFUSED, "z"),
        ({"local": ["*"]}, Code.MODEL_REFUSED, "to share"),
        ({"lora_rank": 40}, Code.MODEL_REFUSED, "rank 40"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(changes: dict[str, Any], code: Code, words: str) -> None:
    chosen = settings(**changes)
    with pytest.raises(RuleError, match=words) as refused:
        chosen._check_training()
        plans.draft(net(), chosen, bytes(16), "task", 0)
    assert refused.value.code is code
