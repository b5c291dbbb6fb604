"""Local training and evaluation: the only module that touches onnxruntime.

What belongs here: binding a plan's graph by role, and running its steps. What does not: which job is run and what becomes of
the update (`lifecycle.py`). Weights and optimiser state live twice, as buffers of the runtime: step k reads the first set and
writes the second, step k+1 the reverse, so that nothing is copied or allocated between two steps.
"""

from __future__ import annotations

import io
import threading
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from whimbrel.actions import Float32, TrainingJob
from whimbrel.examples import Array, Examples
from whimbrel_protocol.delta import decompress
from whimbrel_protocol.encoding import Measured
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.messages import Binding, PlanBody
from whimbrel_protocol.signed import VersionHeader

_GRAPH_MAX = 64 * 2**20
_TOKENS = "token_cross_entropy"
_LOSS = "@loss"
_WEIGHT_SUM = "@weight_sum"
_SPIN_US = 20  # with 50 and more a step gained nothing, and lost on a machine whose other processors were busy
_BOUNDED_SPINNING = (1, 26)  # the first runtime that surely has a limit
_MOVING = ("param", "running", "local", "state")
"""The roles that a step renews, in the order of the buffers."""


class Trainer:
    """The steps of one job on one set of examples; between any two slices it can be saved.

    Raises ProtocolError 504 for too few examples, 508 for a plan that the runtime does not take.
    """

    def __init__(self, job: TrainingJob, examples: Examples, threads: int = 1) -> None:
        body = job.body
        least = max(body.min_examples, body.batch if body.drop_ragged else 1)
        if examples.count < least:
            raise ProtocolError(Code.TOO_FEW_EXAMPLES, f"{examples.count} examples, {least} are needed")
        self._job, self._examples = job, examples
        self._seed, self._spent_s, self.steps = job.seed, 0.0, 0
        self._graph = StepGraph(job, threads)
        self._sums = dict.fromkeys(self._graph.sums(), 0.0)
        self._per_epoch = examples.count // body.batch if body.drop_ragged else -(-examples.count // body.batch)
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self._busy = threading.Lock()

    @property
    def done(self) -> bool:
        """Whether all steps are taken: the header's epochs, or fewer by its step or time limit, but at least one."""
        header, total = self._job.header, self._job.header.epochs * self._per_epoch
        if header.max_steps:
            total = min(total, header.max_steps)
        late = header.time_budget_ms > 0 and 1000 * self._spent_s >= header.time_budget_ms
        return self.steps >= max(total, 1) or (late and self.steps > 0)

    def run(self, slice_s: float) -> float:
        """Take steps until all are done or `slice_s` seconds have passed, at least one; return the seconds taken.

        Raises ProtocolError 503 where the loss is no longer finite, 502 where the runtime refuses the examples.
        """
        with self._busy:
            begin = time.perf_counter()
            elapsed = 0.0
            while not self.done and (elapsed < slice_s or not elapsed):
                self._step()
                elapsed = time.perf_counter() - begin
            self._spent_s += elapsed
            return elapsed

    def _step(self) -> None:
        epoch, batch = divmod(self.steps, self._per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, _shuffled(self._seed, epoch, self._examples.count)
        size = self._job.body.batch
        loss = self._graph.step(self._examples, self._order[batch * size : (batch + 1) * size])
        if not np.isfinite(loss):
            raise ProtocolError(Code.NOT_FINITE, f"the loss of step {self.steps} is {loss}")
        if epoch == 0:  # each example once, and by the parameters nearest to the base
            self._sums = {name: self._sums[name] + value for name, value in self._graph.sums().items()}
        self.steps += 1

    def update(self) -> Float32:
        """Return trained - base, flat in plan order. Raises ProtocolError 503 where a parameter is not finite."""
        pairs = zip(self._graph.parameters(), self._job.base, strict=True)
        flat = np.concatenate([(new - old).ravel() for new, old in pairs]).astype(np.float32)
        if not np.isfinite(flat).all():
            raise ProtocolError(Code.NOT_FINITE, "a trained parameter is not finite")
        return flat

    def local(self) -> tuple[Array, ...]:
        """Return the parameters that stay on the device, in plan order."""
        return tuple(value.copy() for value in self._graph.local())

    def measured(self) -> Measured:
        """Return the update with what a plan may ask for beside it: `loss` and what else the graph counts, in the first epoch.

        Raises ProtocolError 503 as `update` does.
        """
        return Measured(self.update(), self._examples.count, _means(self._sums) if _WEIGHT_SUM in self._sums else {})

    def save(self) -> bytes:
        """Return a checkpoint: everything that `resume` needs to go on as if nothing had happened."""
        numbers = np.array([self.steps, self._examples.count], np.int64)
        names = [np.frombuffer(raw, np.uint8) for raw in (self._job.basis, self._seed)]
        reals = np.array([self._spent_s, *self._sums.values()])
        out = io.BytesIO()
        np.savez(out, *names, numbers, reals, *self._graph.buffers())
        return out.getvalue()

    def resume(self, checkpoint: bytes) -> bool:
        """Go on from a checkpoint; False, and nothing changed, where it is not one of this job with as many examples."""
        try:
            with np.load(io.BytesIO(checkpoint), allow_pickle=False) as saved:
                basis, seed, numbers, reals, *buffers = (saved[name] for name in saved.files)
        except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile):
            return False
        if basis.tobytes() != self._job.basis or int(numbers[1]) != self._examples.count:
            return False
        self._graph.fill(buffers)
        self._seed, self._spent_s, self.steps, self._epoch = seed.tobytes(), float(reals[0]), int(numbers[0]), -1
        self._sums = dict(zip(self._sums, reals[1:].tolist(), strict=True))
        return True


def _shuffled(seed: bytes, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """Return a permutation that depends on the seed and the epoch alone, so that a checkpoint needs no generator state."""
    mixed = np.random.SeedSequence([int.from_bytes(seed, "little"), epoch])
    return np.random.Generator(np.random.PCG64(mixed)).permutation(count)


class StepGraph:
    """The train-step graph with its buffers."""

    def __init__(self, job: TrainingJob, threads: int) -> None:
        body = job.body
        self._session = open_graph(body.train_graph, body.inputs, body.outputs, threads, _frozen(job))
        self._batch = _BatchBuffers(body.inputs)
        local = [job.held[one.name] for one in body.of("local")]
        start = [*job.base, *local, *(np.full(one.shape, one.default, one.dtype) for one in body.of("state"))]
        moving = [one for role in _MOVING for one in _of(body.inputs, role)]
        renewed = [one for role in _MOVING for one in _of(body.outputs, role)]
        self._sets = (_values(start), _values(start))
        self._constants = _constants(job)
        self._metrics = {one.name: _value(np.zeros(one.shape, one.dtype)) for one in _of(body.outputs, "metric")}
        names = [(a.name, b.name) for a, b in zip(moving, renewed, strict=True)]
        self._bindings = [self._bind(names, *order) for order in ((0, 1), (1, 0))]
        self._turn, self._count, self._kept = 0, len(job.base), len(local)

    def _bind(self, names: Sequence[tuple[str, str]], source: int, target: int) -> Any:
        binding = self._session.io_binding()
        for (name, new), old_value, new_value in zip(names, self._sets[source], self._sets[target], strict=True):
            binding.bind_ortvalue_input(name, old_value)
            binding.bind_ortvalue_output(new, new_value)
        for name, value in {**self._batch.values, **self._constants}.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._metrics.items():
            binding.bind_ortvalue_output(name, value)
        return binding

    def step(self, examples: Examples, rows: npt.NDArray[np.int64]) -> float:
        """Take one step on these rows and return its loss before the update."""
        self._batch.fill(examples, rows)
        return self.advance()

    def feed(self, arrays: Mapping[str, Array]) -> None:
        """Put whole inputs in place for `advance`: a batch, or hyper-parameters."""
        values = {**self._batch.values, **self._constants}
        for name, array in arrays.items():
            values[name].update_inplace(np.ascontiguousarray(array))

    def advance(self) -> float:
        """Take one step on the batch that is in place and return its loss before the update.

        A loss that is not finite leaves the parameters and the state what they were: nothing was written into them.
        """
        run(self._session, self._bindings[self._turn])
        loss = float(self._metrics[_LOSS].numpy())
        if np.isfinite(loss):
            self._turn = 1 - self._turn
        return loss

    def sums(self) -> dict[str, float]:
        """Return the metric sums of the last step's batch, by name."""
        return {name: float(value.numpy()) for name, value in self._metrics.items() if name != _LOSS}

    def parameters(self) -> list[Float32]:
        """Return the newest version that is shared, in plan order."""
        return [value.numpy() for value in self._sets[self._turn][: self._count]]

    def local(self) -> list[Array]:
        """Return the newest parameters that stay here, in plan order."""
        return [value.numpy() for value in self._sets[self._turn][self._count : self._count + self._kept]]

    def buffers(self) -> list[Array]:
        """Return the newest parameters and optimiser state."""
        return [value.numpy() for value in self._sets[self._turn]]

    def fill(self, arrays: Sequence[Array]) -> None:
        """Put back what `buffers` returned."""
        for value, array in zip(self._sets[self._turn], arrays, strict=True):
            value.update_inplace(np.ascontiguousarray(array))


class _BatchBuffers:
    """One static buffer an input of a batch; a short batch is padded with rows of weight 0, which change nothing."""

    def __init__(self, inputs: Sequence[Binding]) -> None:
        bindings = [one for role in ("data", "label", "weight") for one in _of(inputs, role)]
        self._arrays = {one.name: np.zeros(one.shape, one.dtype) for one in bindings}
        self.values = {name: _value(array) for name, array in self._arrays.items()}

    def fill(self, examples: Examples, rows: npt.NDArray[np.int64]) -> None:
        for name, array in self._arrays.items():
            array[: len(rows)] = examples.columns[name][rows]
            array[len(rows) :] = 0
            self.values[name].update_inplace(array)


def _frozen(job: TrainingJob) -> dict[str, Array]:
    """Return the weights that the graphs name and do not contain."""
    return {one.name: job.held[one.name] for one in job.body.fixed if one.role == "frozen"}


def _constants(job: TrainingJob) -> dict[str, Any]:
    """Return what stays the same over all steps: FedProx's anchors, where each parameter stood, and the hyper-parameters."""
    base = dict(zip((one.name for one in job.body.shared), job.base, strict=True))
    stood = {f"{name}@anchor": array for name, array in {**job.held, **base}.items()}
    values = {one.name: _value(stood[one.name]) for one in job.body.of("anchor")}
    for one in job.body.of("hyper"):
        values[one.name] = _value(np.array(_hyper(job.header, one), one.dtype))
    return values


def _hyper(header: VersionHeader, binding: Binding) -> float:
    given = {"@lr": header.lr, "@momentum": header.momentum, "@mu": header.mu, "@weight_decay": header.weight_decay}
    return given.get(binding.name, binding.default)


@dataclass(frozen=True)
class Metrics:
    """Weighted means over all examples: the loss, and the share of right classes where the plan counts them (else None).

    `perplexity` is exp of the loss where that is a cross-entropy for each token, infinite where it overflows (else None).
    """

    loss: float
    accuracy: float | None
    weight: float
    perplexity: float | None = None


class Evaluator:
    """A plan's evaluation graph: what a model is worth on examples.

    `held` is what the device has beside versions, by name. Raises ProtocolError 508 as `Trainer` does.
    """

    def __init__(self, body: PlanBody, threads: int = 1, held: Mapping[str, Array] | None = None) -> None:
        self._body, self._held = body, held or {}
        frozen = {one.name: self._held[one.name] for one in body.fixed if one.role == "frozen"}
        self._session = open_graph(body.eval_graph, body.eval_inputs, body.eval_outputs, threads, frozen)

    def evaluate(self, parameters: Sequence[Float32], examples: Examples) -> Metrics:
        """Return the metrics of a version (plan order and shapes). Raises ProtocolError 504 without examples."""
        if not examples.count:
            raise ProtocolError(Code.TOO_FEW_EXAMPLES, "no examples to evaluate on")
        batch = _BatchBuffers(self._body.eval_inputs)
        version = dict(zip((one.name for one in self._body.shared), parameters, strict=True))
        weights = {one.name: _value({**self._held, **version}[one.name]) for one in self._weights()}
        sums = {one.name: _value(np.zeros(one.shape, one.dtype)) for one in self._body.eval_outputs}
        binding = self._session.io_binding()
        for name, value in {**batch.values, **weights}.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in sums.items():
            binding.bind_ortvalue_output(name, value)
        totals = dict.fromkeys(sums, 0.0)
        for first in range(0, examples.count, self._body.batch):
            batch.fill(examples, np.arange(first, min(first + self._body.batch, examples.count)))
            run(self._session, binding)
            totals = {name: total + float(sums[name].numpy()) for name, total in totals.items()}
        return _metrics(totals, self._body.loss)

    def _weights(self) -> list[Binding]:
        return [one for one in self._body.eval_inputs if one.role in _MOVING]


def _metrics(totals: Mapping[str, float], loss: str) -> Metrics:
    means = _means(totals)
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(means["loss"])) if loss == _TOKENS else None
    return Metrics(means["loss"], means.get("accuracy"), totals[_WEIGHT_SUM], perplexity)


def _means(totals: Mapping[str, float]) -> dict[str, float]:
    """Weighted means of the sums that a graph counts, by the names that a plan has for them."""
    weight = max(totals[_WEIGHT_SUM], 1e-12)
    words = {"correct": "accuracy", "abs_error": "mae"}
    kinds = {name.removeprefix("@").removesuffix("_sum"): total for name, total in totals.items() if name != _WEIGHT_SUM}
    return {words.get(kind, kind): total / weight for kind, total in kinds.items()}


def open_graph(
    graph: bytes,
    inputs: Sequence[Binding],
    outputs: Sequence[Binding],
    threads: int,
    frozen: Mapping[str, Array],
) -> Any:
    """Return a session on a compressed graph; `frozen` holds the weights that lie outside of it.

    Raises ProtocolError 508 where the runtime refuses it or its inputs and outputs are not the plan's.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A pattern would hold one block for all tensors beside the arena that the first run filled; planned reuse keeps large
    # buffers for small tensors, which the arena does better.
    options.enable_mem_pattern = options.enable_mem_reuse = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL  # frozen convolutions gain three times
    for name, setting in _waiting().items():
        options.add_session_config_entry(f"session.{name}", setting)
    buffers = _values(list(frozen.values()))
    if buffers:
        options.add_external_initializers(list(frozen), buffers)
    try:
        session = ort.InferenceSession(decompress(graph, _GRAPH_MAX), options, providers=["CPUExecutionProvider"])
    except ProtocolError:
        raise
    except Exception as error:  # the runtime's own classes share no other parent
        raise ProtocolError(Code.PLAN_UNSUPPORTED, f"the runtime refuses the graph: {error}") from error
    for kind, nodes, table in (("input", session.get_inputs(), inputs), ("output", session.get_outputs(), outputs)):
        names = {one.name for one in table}
        if {node.name for node in nodes} != names:
            raise ProtocolError(Code.PLAN_UNSUPPORTED, f"the graph's {kind}s are not the plan's {sorted(names)}")
    session.frozen = buffers  # some kernels read them in place, and the session itself does not keep them alive
    return session


def _waiting() -> dict[str, str]:
    """Return how a thread waits for work: not at all where the runtime knows no limit, since idle threads would burn battery.

    Waking a thread takes longer than most operators; waiting for the time of a few, within a step alone, costs less.
    """
    known = tuple(int(part) for part in ort.__version__.split(".")[:2]) >= _BOUNDED_SPINNING
    if not known:
        return {"intra_op.allow_spinning": "0"}
    return {"intra_op.allow_spinning": "1", "intra_op.spin_duration_us": str(_SPIN_US), "force_spinning_stop": "1"}


def run(session: Any, binding: Any) -> None:
    """Run a bound graph once. Raises ProtocolError 502 with the runtime's words: the graph was accepted, so it is the data."""
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # the runtime's own classes share no other parent
        raise ProtocolError(Code.DATA_UNUSABLE, f"the runtime stopped: {error}") from error


def _of(bindings: Iterable[Binding], role: str) -> list[Binding]:
    return [one for one in bindings if one.role == role]


def _value(array: Array) -> Any:
    """Return a buffer of the runtime with a copy of the array: the runtime may use an array's own memory in place."""
    return ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C", copy=True))


def _values(arrays: Sequence[Array]) -> list[Any]:
    return [_value(array) for array in arrays]
