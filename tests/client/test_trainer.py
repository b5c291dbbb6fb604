"""The trainer and the evaluator on the stock runtime: what they compute, and what stops them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.client.tasks import BATCH, compiled, examples, header, personal
from whimbrel.actions import TrainingJob
from whimbrel.examples import Examples, gather
from whimbrel.trainer import Evaluator, Trainer
from whimbrel_protocol import fixed
from whimbrel_protocol.errors import Code, ProtocolError

SEED = bytes(range(32))


def job(seed: bytes = SEED, **changes: Any) -> TrainingJob:
    body, base = compiled()
    return TrainingJob(b"basis", body, base, header(**changes), seed)


def data(count: int = 21, **changes: Any) -> Examples:
    return gather([{**examples(count), **changes}], compiled()[0].inputs)


def trained(the_job: TrainingJob, rows: Examples) -> Any:
    trainer = Trainer(the_job, rows)
    trainer.run(60.0)
    assert trainer.done
    return trainer.update()


def softmax_gradient(base: tuple[Any, ...], x: Any, label: Any) -> list[Any]:
    """The mean gradient of the dense classifier, by hand in float64 (weights are [out, in])."""
    w1, b1, w2, b2 = (array.astype(np.float64) for array in base)
    hidden = np.maximum(x @ w1.T + b1, 0)
    logits = hidden @ w2.T + b2
    p = np.exp(logits - logits.max(1, keepdims=True))
    error = (p / p.sum(1, keepdims=True) - np.eye(logits.shape[1])[label]) / len(x)
    back = (error @ w2) * (hidden > 0)
    return [back.T @ x, back.sum(0), error.T @ hidden, error.sum(0)]


def test_one_padded_batch_takes_the_exact_step_of_its_real_rows() -> None:
    rows = data(5)
    update = trained(job(epochs=1, lr=0.5), rows)
    body, base = compiled()
    assert [len(base), rows.count, body.batch] == [4, 5, BATCH]
    gradient = softmax_gradient(base, rows.columns["x"].astype(np.float64), rows.columns["@label"])
    wanted = np.concatenate([-0.5 * one.ravel() for one in gradient])
    np.testing.assert_allclose(update, wanted, atol=1e-6)


def test_momentum_and_the_proximal_anchor_act_over_two_steps() -> None:
    rows, (_, base) = data(6), compiled()
    lr, momentum, mu = 0.1, 0.9, 0.5
    now, velocity = [one.astype(np.float64) for one in base], [np.zeros(one.shape) for one in base]
    for _ in range(2):
        gradient = softmax_gradient(tuple(now), rows.columns["x"].astype(np.float64), rows.columns["@label"])
        pulled = [g + mu * (p - b) for g, p, b in zip(gradient, now, base, strict=True)]
        velocity = [momentum * v + g for v, g in zip(velocity, pulled, strict=True)]
        now = [p - lr * v for p, v in zip(now, velocity, strict=True)]
    update = trained(job(epochs=2, lr=lr, momentum=momentum, mu=mu), rows)
    wanted = np.concatenate([(p - b).ravel() for p, b in zip(now, base, strict=True)])
    np.testing.assert_allclose(update, wanted, atol=1e-6)


def test_the_seed_decides_the_order_and_a_slice_boundary_changes_nothing() -> None:
    rows = data()
    whole = trained(job(), rows)
    sliced = Trainer(job(), rows)
    while not sliced.done:
        sliced.run(0.0)
    np.testing.assert_array_equal(whole, sliced.update())
    assert sliced.steps == 9  # three epochs of 21 examples in batches of 8
    assert not np.array_equal(whole, trained(job(seed=bytes(32)), rows))


@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(steps: int) -> None:
    rows = data()
    first = Trainer(job(momentum=0.9), rows)
    for _ in range(steps):
        first.run(0.0)
    second = Trainer(job(seed=bytes(32), momentum=0.9), rows)
    assert second.resume(first.save())
    second.run(60.0)
    np.testing.assert_array_equal(second.update(), trained(job(momentum=0.9), rows))


def test_a_checkpoint_of_another_job_or_a_damaged_one_is_not_used() -> None:
    rows = data()
    first = Trainer(job(), rows)
    first.run(0.0)
    saved = first.save()
    other = Trainer(replace(job(), basis=b"other"), rows)
    assert not other.resume(saved)
    assert not Trainer(job(), data(22)).resume(saved)
    assert not other.resume(saved[:100])
    assert other.steps == 0


def test_limits_of_the_header_end_training() -> None:
    rows = data()
    limited = Trainer(job(max_steps=4), rows)
    limited.run(60.0)
    assert limited.steps == 4
    hurried = Trainer(job(epochs=10**6, time_budget_ms=1), rows)
    hurried.run(0.0)
    while not hurried.done:
        hurried.run(0.0)
    assert 1 <= hurried.steps < 1000


def test_perplexity_is_that_of_a_loss_of_tokens() -> None:
    (body, base), rows = compiled(), data()
    plain, tokens = (Evaluator(replace(body, loss=loss)).evaluate(base, rows) for loss in (body.loss, "token_cross_entropy"))
    assert plain.perplexity is None
    assert tokens.perplexity == pytest.approx(np.exp(plain.loss))


def test_metrics_are_means_over_the_first_epoch_and_survive_a_checkpoint() -> None:
    body, base = compiled()
    rows, judge = data(), Evaluator(body)
    still = Trainer(job(lr=0.0, epochs=3), rows)
    still.run(60.0)
    at_base, found = judge.evaluate(base, rows), still.measured()
    assert found.examples == 21
    assert found.metrics == pytest.approx({"loss": at_base.loss, "accuracy": at_base.accuracy}, rel=1e-6)
    learning, resumed = Trainer(job(lr=0.5, epochs=1), rows), Trainer(job(lr=0.5, epochs=4), rows)
    learning.run(60.0)
    interrupted = Trainer(job(lr=0.5, epochs=4), rows)
    interrupted.run(0.0)
    assert resumed.resume(interrupted.save())
    resumed.run(60.0)
    assert resumed.measured().metrics == learning.measured().metrics != found.metrics


def test_the_trainer_leaves_clipping_to_the_encoding() -> None:
    plain = trained(job(), data())
    np.testing.assert_array_equal(trained(job(clip=float(np.linalg.norm(plain)) / 2), data()), plain)


def test_training_that_diverges_stops_with_its_number() -> None:
    rows = data(x=np.full((21, 6), 1e30, np.float32))
    trainer = Trainer(job(lr=1e30), rows)
    with pytest.raises(ProtocolError) as caught:
        trainer.run(60.0)
    assert caught.value.code is Code.NOT_FINITE


def test_a_step_that_is_not_finite_leaves_what_was_learnt_before() -> None:
    """One row is not a number: its step is refused by number, and update and checkpoint are those of the steps before."""
    refused_at, clean = set(), data()
    for bad in range(0, 21, 4):
        x = examples(21)["x"]
        x[bad, 0] = np.nan
        trainer, sound = Trainer(job(momentum=0.9), data(x=x)), Trainer(job(momentum=0.9), clean)
        with pytest.raises(ProtocolError, match=r"step \d is nan") as caught:
            trainer.run(60.0)
        assert caught.value.code is Code.NOT_FINITE
        while sound.steps < trainer.steps:
            sound.run(0.0)
        np.testing.assert_array_equal(trainer.update(), sound.update())
        refused_at.add(trainer.steps)
    assert len(refused_at) > 1


def test_training_teaches_and_the_evaluator_sees_it() -> None:
    body, base = compiled()
    rows, judge = data(120), Evaluator(body)
    before = judge.evaluate(base, rows)
    cuts = np.cumsum([one.size for one in base])[:-1]
    moved = np.split(trained(job(epochs=20, momentum=0.9), rows), cuts)
    after = judge.evaluate([old + new.reshape(old.shape) for old, new in zip(base, moved, strict=True)], rows)
    assert after.weight == before.weight == 120
    assert after.accuracy is not None and after.accuracy > 0.95
    assert after.loss < before.loss / 2


def test_examples_of_weight_zero_count_for_nothing() -> None:
    weight = np.ones(21, np.float32)
    weight[11:] = 0
    half = data()
    some = Examples({name: column[:11] for name, column in half.columns.items()}, 11)
    body, base = compiled()
    weighted, plain = Evaluator(body).evaluate(base, data(**{"@weight": weight})), Evaluator(body).evaluate(base, some)
    assert weighted == pytest.approx(plain)


@pytest.mark.parametrize(
    ("batch", "word"),
    [
        ({"x": np.zeros((3, 6), np.float32)}, "@label"),
        ({"@label": np.zeros(3, np.int64)}, "'x'"),
        ({"x": np.zeros((3, 5), np.float32), "@label": np.zeros(3, np.int64)}, "shape"),
        ({"x": np.zeros((2, 6), np.float32), "@label": np.zeros(3, np.int64)}, "shape"),
        ({"x": np.zeros((3, 6), "<U3"), "@label": np.zeros(3, np.int64)}, "become"),
        ({"x": np.zeros((3, 6), np.float32), "@label": np.zeros(3, np.float32)}, "become"),
        ({"x": np.zeros((3, 6), np.float32), "@label": np.full(3, -1)}, "negative"),
    ],
)
def test_examples_that_do_not_fit_are_refused_by_name(batch: dict[str, Any], word: str) -> None:
    with pytest.raises(ProtocolError, match=word) as caught:
        gather([batch], compiled()[0].inputs)
    assert caught.value.code is Code.DATA_UNUSABLE


def test_a_class_that_the_model_does_not_have_is_the_datas_fault() -> None:
    with pytest.raises(ProtocolError) as caught:
        Trainer(job(), data(**{"@label": np.full(21, 3)})).run(1.0)
    assert caught.value.code is Code.DATA_UNUSABLE


def test_batches_of_any_size_join_and_label_is_short_for_the_reserved_name() -> None:
    whole = examples(10)
    parts = [{"x": whole["x"][a:b], "label": whole["@label"][a:b]} for a, b in ((0, 1), (1, 1), (1, 10))]
    joined = gather(iter(parts), compiled()[0].inputs)
    assert joined.count == 10
    np.testing.assert_array_equal(joined.columns["x"], whole["x"])
    np.testing.assert_array_equal(joined.columns["@weight"], np.ones(10))


def test_too_few_examples_and_foreign_graphs_are_refused() -> None:
    with pytest.raises(ProtocolError) as few:
        Trainer(job(), data(1))
    assert few.value.code is Code.TOO_FEW_EXAMPLES
    body = replace(compiled()[0], inputs=compiled()[0].inputs[:-1])
    with pytest.raises(ProtocolError) as foreign:
        Trainer(replace(job(), body=body), data())
    assert foreign.value.code is Code.PLAN_UNSUPPORTED


def test_frozen_weights_are_handed_over_and_local_ones_stay() -> None:
    body, base, blob = personal()
    held = fixed.decode(blob, body.fixed)
    assert [one.name for one in body.shared] == ["dense2.weight"]
    rows = gather([examples(21)], body.inputs)
    trainer = Trainer(TrainingJob(b"basis", body, base, header(epochs=2, mu=0.3), SEED, held), rows)
    trainer.run(60.0)
    (bias,) = trainer.local()
    assert trainer.update().size == base[0].size
    assert not np.array_equal(bias, held["dense2.bias"]), "a local parameter is trained"
    again = Evaluator(body, held={**held, "dense2.bias": bias}).evaluate(base, rows)
    assert again.loss != Evaluator(body, held=held).evaluate(base, rows).loss
    zeros = {**held, "dense1.weight": np.zeros_like(held["dense1.weight"])}
    assert Evaluator(body, held=zeros).evaluate(base, rows).loss != Evaluator(body, held=held).evaluate(base, rows).loss


def test_a_step_with_batch_statistics_leaves_a_ragged_batch_out() -> None:
    ragged = replace(compiled()[0], drop_ragged=True)
    _, base = compiled()
    trainer = Trainer(TrainingJob(b"basis", ragged, base, header(epochs=2), SEED), data(21))
    trainer.run(60.0)
    assert trainer.steps == 2 * (21 // BATCH)
    with pytest.raises(ProtocolError) as caught:
        Trainer(TrainingJob(b"basis", ragged, base, header(), SEED), data(BATCH - 1))
    assert caught.value.code is Code.TOO_FEW_EXAMPLES
