"""The benchmarks run, and what they measure is what they say; no time is judged here."""

import numpy as np
import pytest
from onnx import numpy_helper

from whimbrel_lab.bench import costs as bench_costs
from whimbrel_lab.bench import steps as bench_steps
from whimbrel_lab.bench.models import BENCHES
from whimbrel_server.compiler.rules import costs


@pytest.mark.parametrize("name", BENCHES)
def test_a_step_on_the_wire_is_small_beside_its_model(name: str) -> None:
    model = BENCHES[name].build(1)
    weights = sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)
    plan = bench_steps.plan_of(model, BENCHES[name])
    assert len(plan.train_graph) < max(20_000, weights // 10)


@pytest.mark.processes
def test_a_step_is_timed_on_the_devices_own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_steps, "TURNS", 2)
    monkeypatch.setattr(bench_steps, "TURN_S", 0.01)
    (row,) = bench_steps.run(bench_steps.Options(models=("mlp",), threads=(1,)))
    assert row["model"] == "mlp"
    assert 0 < row["ours_ms"] < 1000
    assert 0 < row["ours_mb"] < row["ours_all_mb"]
    assert "ratio" not in row


def test_losses_that_differ_are_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    class Side:
        def __init__(self, loss: float) -> None:
            self.loss = loss

        def steps(self, count: int) -> dict[str, float]:
            return {"wall": 1.0, "busy": 1.0, "loss": self.loss, "loaded_kb": 1.0, "peak_kb": 2.0}

    monkeypatch.setattr(bench_steps, "TURNS", 3)
    sides = {"ours": Side(2.0), "torch": Side(2.0001)}
    assert [len(samples) for samples in bench_steps.turns("mlp", sides, lambda: 1e-3).values()] == [3, 3, 3]
    with pytest.raises(ArithmeticError, match="mlp"):
        bench_steps.turns("mlp", {**sides, "torch": Side(2.1)}, lambda: 1e-3)


def test_every_limit_of_the_cost_table_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {name for name in vars(costs) if name.isupper()}
    assert set(bench_costs.CANDIDATES) == limits
    layer = bench_costs.Layer(4, 4, 6, 3, depthwise=True)
    monkeypatch.setattr(bench_costs, "CANDIDATES", {"LARGEST_BAND": ((0, 4096), (layer,))})
    monkeypatch.setattr(bench_costs, "TURN_S", 0.001)
    before = costs.LARGEST_BAND
    times = bench_costs.measured("LARGEST_BAND")
    assert before == costs.LARGEST_BAND
    assert [list(column) for column in times.values()] == [[str(layer)]] * 2
    assert all(spent > 0 for column in times.values() for spent in column.values())


def test_the_candidate_with_the_least_geometric_mean_is_best() -> None:
    assert bench_costs.best({1: {"a": 1.0, "b": 9.0}, 2: {"a": 2.0, "b": 4.0}, 3: {"a": 3.0, "b": 3.5}}) == 2


def test_candidates_lead_to_different_graphs() -> None:
    layer = bench_costs.Layer(4, 4, 6, 3, depthwise=True)
    graphs = set()
    for limit in (0, 4096):
        with bench_costs.limited("LARGEST_BAND", limit):
            graphs.add(bench_costs.step(layer))
    assert len(graphs) == 2
    assert np.isfinite(bench_costs.seconds(sorted(graphs))).all()
