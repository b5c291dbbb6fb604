"""The yardstick: the same model trained in one place on all examples, to its plateau or for as many passes as a fleet took.

What belongs here: central training by the very plan that the devices work by, and accuracy on the test examples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import onnxruntime as ort

from whimbrel.actions import Float32, TrainingJob
from whimbrel.examples import gather
from whimbrel.preparing import held_tensors
from whimbrel.trainer import Evaluator, Trainer
from whimbrel_lab.data.samples import Examples
from whimbrel_protocol import wire
from whimbrel_protocol.messages import PlanBody
from whimbrel_protocol.signed import VersionHeader
from whimbrel_server import plans
from whimbrel_server.settings import TaskSettings

EPOCHS_A_LEG = 5
LEGS_MAX = 16
PATIENCE = 3  # legs in a row that get no more of the training examples right: the plateau
BATCH = 32  # the devices' batch of 8 is made for their few examples; centrally it trains worse


def accuracy(model: bytes, test: Examples) -> float:
    """Return the share of `test` that an inference model (an ONNX file) classifies right."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    scores = session.run(None, dict(test.inputs))[0]
    return float(np.mean(np.argmax(scores, axis=1) == test.label))


def central_accuracy(model: bytes, settings: TaskSettings, train: Examples, test: Examples) -> float:
    """Return the test accuracy of the model trained on all of `train`: the mean of its last three legs.

    A leg is five epochs at the settings' rate, halved after each leg that brings no better accuracy on `train`.
    """
    learner = Learner(model, msgspec.structs.replace(settings, batch=BATCH), train, test)
    scores, best, stale = list[float](), 0.0, 0
    header = replace(settings.header(1), epochs=EPOCHS_A_LEG)
    while len(scores) < LEGS_MAX and stale < PATIENCE:
        learner.learn(header)
        scores.append(learner.test_accuracy())
        learnt = learner.training_accuracy()
        best, stale = max(best, learnt), 0 if learnt > best else stale + 1
        header = replace(header, lr=header.lr / 2) if stale else header
    return float(np.mean(scores[-3:]))


def after_passes(
    model: bytes, settings: TaskSettings, train: Examples, test: Examples, passes: Sequence[float]
) -> tuple[list[float], list[Float32]]:
    """Train on all of `train` by the settings, `passes[v]` times all examples at version v's rate.

    Returns the test accuracy after each leg, and the parameters in the end, in plan order.
    """
    learner, scores = Learner(model, settings, train, test), list[float]()
    for version, share in enumerate(passes, start=1):
        steps = max(1, round(share * len(train) / settings.batch))
        learner.learn(replace(settings.header(version), epochs=math.ceil(share) + 1, max_steps=steps))
        scores.append(learner.test_accuracy())
    return scores, list(learner.parameters)


class Learner:
    """One place that has all examples and works by a plan, as a device would."""

    def __init__(self, model: bytes, settings: TaskSettings, train: Examples, test: Examples) -> None:
        made = plans.draft(model, settings, bytes(16), "central", 0)
        self._body = wire.decode(made.plan.body, PlanBody)
        self._held = held_tensors(self._body, made.fixed, None) if made.fixed else {}
        self._train, self._test = (gather([one.columns], self._body.inputs) for one in (train, test))
        self._evaluator = Evaluator(self._body, held=self._held)
        self.parameters: tuple[Float32, ...] = tuple(parameters_of(model, settings))
        self._legs, self._seed = 0, settings.seed

    def learn(self, header: VersionHeader) -> None:
        """Train one leg from where the last one ended."""
        seed = hashlib.sha256(f"central {self._seed} {self._legs}".encode()).digest()
        trainer = Trainer(TrainingJob(seed, self._body, self.parameters, header, seed, self._held), self._train)
        while not trainer.done:
            trainer.run(slice_s=60.0)
        sizes = np.cumsum([base.size for base in self.parameters])[:-1]
        moved = zip(self.parameters, np.split(trainer.update(), sizes), strict=True)
        self.parameters = tuple(base + update.reshape(base.shape) for base, update in moved)
        self._legs += 1

    def test_accuracy(self) -> float:
        """The share of the test examples that are classified right."""
        return self._evaluator.evaluate(self.parameters, self._test).accuracy or 0.0

    def training_accuracy(self) -> float:
        """The share of the training examples that are classified right."""
        return self._evaluator.evaluate(self.parameters, self._train).accuracy or 0.0


def parameters_of(model: bytes, settings: TaskSettings) -> list[Float32]:
    """Return the parameters that are trained, in plan order."""
    return list(plans.first_parameters(model, settings).values())
