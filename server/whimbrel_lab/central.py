"""The yardstick of the demo: the same model trained in one place on all examples, until it gets no better.

What belongs here: central training by the very plan that the devices work by, and accuracy on the test examples.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec
import numpy as np
import onnxruntime as ort

from whimbrel.actions import Float32, TrainingJob
from whimbrel.examples import Examples as Columns
from whimbrel.examples import gather
from whimbrel.trainer import Evaluator, Trainer
from whimbrel_lab.digits import Examples
from whimbrel_protocol import wire
from whimbrel_protocol.messages import PlanBody
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
    scores = session.run(None, {"image": test.image})[0]
    return float(np.mean(np.argmax(scores, axis=1) == test.label))


def central_accuracy(model: bytes, settings: TaskSettings, train: Examples, test: Examples) -> float:
    """Return the test accuracy of the model trained on all of `train`: the mean of its last three legs.

    A leg is five epochs at the settings' rate, halved after each leg that brings no better accuracy on `train`.
    """
    settings = msgspec.structs.replace(settings, batch=BATCH)
    body = wire.decode(plans.draft(model, settings, bytes(16), "central", 0).plan.body, PlanBody)
    columns, held_out = _columns(train, body), _columns(test, body)
    parameters: tuple[Float32, ...] = tuple(parameters_of(model, settings))
    evaluator, scores, best, stale = Evaluator(body), list[float](), 0.0, 0
    header = replace(settings.header(1), epochs=EPOCHS_A_LEG)
    while len(scores) < LEGS_MAX and stale < PATIENCE:
        seed = hashlib.sha256(f"central {settings.seed} {len(scores)}".encode()).digest()
        parameters = _leg(TrainingJob(seed, body, parameters, header, seed), columns)
        scores.append(evaluator.evaluate(parameters, held_out).accuracy or 0.0)
        learnt = evaluator.evaluate(parameters, columns).accuracy or 0.0
        best, stale = max(best, learnt), 0 if learnt > best else stale + 1
        header = replace(header, lr=header.lr / 2) if stale else header
    return float(np.mean(scores[-3:]))


def parameters_of(model: bytes, settings: TaskSettings) -> list[Float32]:
    """Return the parameters that are trained, in plan order."""
    return list(plans.first_parameters(model, settings).values())


def _columns(examples: Examples, body: PlanBody) -> Columns:
    return gather([{"image": examples.image, "@label": examples.label}], body.inputs)


def _leg(job: TrainingJob, columns: Columns) -> tuple[Float32, ...]:
    trainer = Trainer(job, columns)
    while not trainer.done:
        trainer.run(slice_s=60.0)
    update, moved, start = trainer.update(), [], 0
    for base in job.base:
        moved.append(base + update[start : start + base.size].reshape(base.shape))
        start += base.size
    return tuple(moved)
