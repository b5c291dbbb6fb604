"""The cells of recurrent layers: one Scan forward, and one backward that does a single product a step.

The forward hands out what the backward needs. All of the backward that is not recurrent is done for all
steps at once: the factors of the gradients before its Scan, a weight's gradient as one wide product after
it. Samples may be on the last axis: a product then reads a large weight as it is, and gates are cut and
joined without moving single numbers. A step beyond the end of a sequence leaves the state as it is and gives
0. The formulas are those of ONNX's LSTM, GRU and RNN; where operands come from, and which form is taken, is
`recurrent.py`'s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whimbrel_server.compiler.graph.ir import Graph, Node, Value
from whimbrel_server.compiler.rules.gates import Gate
from whimbrel_server.compiler.rules.table import Gradients

Stepped = tuple[Sequence[Value], Sequence[Value]]
Step = Callable[..., Stepped]


@dataclass(frozen=True)
class Layer:
    """One direction of a recurrent layer of `H` hidden units with `G` gates.

    `x` `[T, N, I]`, `w` `[G*H, I]`, `r` `[G*H, H]`, `biases` of both `[G*H]` or none, first `states` `[N, H]`;
    `mask` `[T, N, 1]` is 1 where a sequence still runs. With `samples_last` instead biases `[G*H, 1]`, states `[H, N]` and
    mask `[T, 1, N]`, and so are the results.
    """

    x: Value
    w: Value
    r: Value
    biases: tuple[Value, ...]
    states: tuple[Value, ...]
    mask: Value | None
    reverse: bool
    gates: tuple[Gate, ...]
    samples_last: bool = False

    @property
    def graph(self) -> Graph:
        return self.x.graph

    @property
    def hidden(self) -> int:
        return self.r.shape[1]

    def projected(self, biases: Sequence[Value]) -> Value:
        """What inputs and biases add to the gates at all steps, `[T, N, G*H]` or `[T, G*H, N]`: one product."""
        product = self.product(self.w, self.x.reshape([-1, self.x.shape[2]]), *_total(biases), turned=True)
        if self.samples_last:
            return product.reshape([self.w.shape[0], *self.x.shape[:2]]).transpose([1, 0, 2])
        return product.reshape([*self.x.shape[:2], self.w.shape[0]])

    def product(self, weight: Value, samples: Value, *added: Value, turned: bool = False) -> Value:
        """A weight times samples, that stand as the layer has them or, if `turned`, on the first axis."""
        if self.samples_last:
            return self.graph.op("Gemm", weight, samples, *added, **({"transB": 1} if turned else {}))
        return self.graph.op("Gemm", samples, weight, *added, transB=1)

    def for_back(self, weight: Value) -> Value:
        """The weight as `back_product` multiplies with it: turned once, not in each step."""
        return weight.transpose([1, 0]) if self.samples_last else weight

    def back_product(self, weight: Value, gradient: Value, *added: Value) -> Value:
        operands = (weight, gradient) if self.samples_last else (gradient, weight)
        return self.graph.op("Gemm", *operands, *added)

    def weight_gradient(self, gradient: Value, read: Value) -> Value:
        """A weight's gradient `[G, H]` over all steps and the batch, of the gates' and what the weight read: one product."""
        if self.samples_last:
            flat = (value.transpose([1, 0, 2]).reshape([value.shape[1], -1]) for value in (gradient, read))
            return self.graph.op("Gemm", *flat, transB=1)
        flat = (value.reshape([-1, value.shape[2]]) for value in (gradient, read))
        return self.graph.op("Gemm", *flat, transA=1)

    def cut(self, value: Value, sizes: Sequence[int]) -> tuple[Value, ...]:
        """`value` cut along the axis of the gates."""
        return self.graph.multi("Split", value, self.graph.ints(sizes), outputs=len(sizes), axis=self._gate_axis(value))

    def join(self, *values: Value) -> Value:
        return self.graph.op("Concat", *values, axis=self._gate_axis(values[0]))

    def _gate_axis(self, value: Value) -> int:
        return value.rank - (2 if self.samples_last else 1)

    def forward(
        self, step: Step, captured: Sequence[Value], projected: Value, gradient: Callable[..., Gradients]
    ) -> tuple[Value, ...]:
        """Runs `step(*states, projected, *mask)`; `y` and the last states."""
        masks = [] if self.mask is None else [self.mask]
        outs = self.graph.scan(step, self.states, [projected, *masks], captured, self.reverse, gradient)
        last = len(self.states)
        return outs[last], *outs[:last]

    def backward(
        self, step: Step, captured: Sequence[Value], arrived: Gradients, factors: Sequence[Value]
    ) -> tuple[Value, ...]:
        """Runs `step(*gradients of the states, *factors)` against the order of the forward.

        The gradient of `y` is added to that of the state before each step.
        """
        count = len(self.states)
        zeros = self.graph.zeros(self.states[0].shape, self.x.dtype)
        carries = [gradient or zeros for gradient in arrived[:count]]
        of_y = [self.running(gradient) for gradient in arrived[count : count + 1] if gradient is not None]

        def add_then_step(dh: Value, *rest: Value) -> Stepped:
            return step(dh + rest[-1], *rest[:-1]) if of_y else step(dh, *rest)

        return self.graph.scan(add_then_step, carries, [*factors, *of_y], captured, not self.reverse)

    def running(self, factor: Value) -> Value:
        """`factor`, or 0 where the sequence has ended."""
        return factor if self.mask is None else factor * self.mask

    def carried(self, factor: Value | None) -> tuple[Value, ...]:
        """What the state's gradient keeps in a step: `factor` (None: nothing), or 1 where the sequence has ended."""
        if self.mask is None:
            return () if factor is None else (factor,)
        ended = 1.0 - self.mask
        return (ended if factor is None else factor * self.mask + ended,)


def lstm(layer: Layer) -> tuple[Value, ...]:
    """`y`, last `h`, last `c`; gates in the order i, o, f, c.

    C' = f C + i c, H' = o shown(C').
    """
    gate, candidate, shown = layer.gates
    hidden = layer.hidden

    def step(h: Value, c: Value, projected: Value, *mask: Value) -> Stepped:
        gates, new = layer.cut(layer.product(layer.r, h, projected), [3 * hidden, hidden])
        (i, o, f), new = layer.cut(gate(gates), [hidden] * 3), candidate(new)
        c_next = f * c + i * new
        out = shown(c_next)
        y = o * out
        return (_held(y, h, mask), _held(c_next, c, mask)), (_masked(y, mask), h, c, i, o, f, new, out)

    def gradient(node: Node, *arrived: Value | None) -> Gradients:
        h, c, i, o, f, new, out = node.outs[3:]
        slopes = (new * gate.slope(i), out * gate.slope(o), c * gate.slope(f), i * candidate.slope(new))
        factors = [*map(layer.running, (layer.join(*slopes), o * shown.slope(out))), *layer.carried(f), *layer.carried(None)]

        def back(dh: Value, dc: Value, *factors: Value) -> Stepped:
            to_gates, to_c, keep, *ended = factors
            dc = dc + dh * to_c
            dz = layer.join(dc, dh, dc, dc) * to_gates
            return (layer.back_product(back_weight, dz, *(dh * factor for factor in ended)), dc * keep), (dz,)

        back_weight = layer.for_back(layer.r)
        dh, dc, dz = layer.backward(back, [back_weight], arrived, factors)
        return dh, dc, dz, *_unmoved(layer), layer.weight_gradient(dz, h)

    return layer.forward(step, [layer.r], layer.projected(layer.biases), gradient)


def gru(layer: Layer) -> tuple[Value, ...]:
    """`y` and last `h` of a GRU whose reset gate comes after the product (linear_before_reset = 1).

    Gates in the order z, r, n: n = candidate(x_n + r h_n), H' = n + z (H - n).
    """
    gate, candidate = layer.gates
    hidden, of_state = layer.hidden, [layer.r, *layer.biases[1:]]

    def step(h: Value, projected: Value, *mask: Value) -> Stepped:
        x_gates, x_new = layer.cut(projected, [2 * hidden, hidden])
        h_gates, h_new = layer.cut(layer.product(layer.r, h, *of_state[1:]), [2 * hidden, hidden])
        z, reset = layer.cut(gate(x_gates + h_gates), [hidden] * 2)
        new = candidate(x_new + reset * h_new)
        y = new + z * (h - new)
        return (_held(y, h, mask),), (_masked(y, mask), h, z, reset, new, h_new)

    def gradient(node: Node, *arrived: Value | None) -> Gradients:
        h, z, reset, new, h_new = node.outs[2:]
        to_new = layer.running((1.0 - z) * candidate.slope(new))
        to_z, to_reset = layer.running((h - new) * gate.slope(z)), to_new * h_new * gate.slope(reset)

        def back(dh: Value, *factors: Value) -> Stepped:
            *to_products, keep = factors
            products = layer.join(*(dh * factor for factor in to_products))
            return (layer.back_product(back_weight, products, dh * keep),), (products, dh)

        back_weight = layer.for_back(layer.r)
        first, products, dh = layer.backward(back, [back_weight], arrived, [to_z, to_reset, to_new * reset, *layer.carried(z)])
        projected = layer.join(layer.cut(products, [2 * hidden, hidden])[0], dh * to_new)
        bias = products.sum([0, 2 if layer.samples_last else 1], keepdims=False).reshape([-1, *[1] * layer.samples_last])
        return first, projected, *_unmoved(layer), layer.weight_gradient(products, h), bias

    return layer.forward(step, of_state, layer.projected(layer.biases[:1]), gradient)


def gru_reset_first(layer: Layer) -> tuple[Value, ...]:
    """`y` and last `h` of a GRU whose reset gate comes before the product: n = candidate(x_n + R_n (r H))."""
    gate, candidate = layer.gates
    graph, hidden = layer.graph, layer.hidden
    r_gates, r_new = graph.multi("Split", layer.r, graph.ints([2 * hidden, hidden]), outputs=2, axis=0)

    def step(h: Value, projected: Value, *mask: Value) -> Stepped:
        x_gates, x_new = layer.cut(projected, [2 * hidden, hidden])
        z, reset = layer.cut(gate(layer.product(r_gates, h, x_gates)), [hidden] * 2)
        kept = reset * h
        new = candidate(layer.product(r_new, kept, x_new))
        y = new + z * (h - new)
        return (_held(y, h, mask),), (_masked(y, mask), h, z, reset, kept, new)

    def gradient(node: Node, *arrived: Value | None) -> Gradients:
        h, z, reset, kept, new = node.outs[2:]
        to_new = layer.running((1.0 - z) * candidate.slope(new))
        to_z, to_reset = layer.running((h - new) * gate.slope(z)), h * gate.slope(reset)

        def back(dh: Value, *factors: Value) -> Stepped:
            to_new, to_z, to_reset, reset, keep = factors
            dn = dh * to_new
            dkept = layer.back_product(back_new, dn)
            gates = layer.join(dh * to_z, dkept * to_reset)
            return (layer.back_product(back_gates, gates, dh * keep + dkept * reset),), (gates, dn)

        back_gates, back_new = layer.for_back(r_gates), layer.for_back(r_new)
        factors = [to_new, to_z, to_reset, reset, *layer.carried(z)]
        first, gates, dn = layer.backward(back, [back_gates, back_new], arrived, factors)
        return first, layer.join(gates, dn), *_unmoved(layer), layer.weight_gradient(gates, h), layer.weight_gradient(dn, kept)

    return layer.forward(step, [r_gates, r_new], layer.projected(layer.biases), gradient)


def rnn(layer: Layer) -> tuple[Value, ...]:
    """`y` and last `h`: H' = gate(x + R H)."""
    (gate,) = layer.gates

    def step(h: Value, projected: Value, *mask: Value) -> Stepped:
        new = gate(layer.product(layer.r, h, projected))
        return (_held(new, h, mask),), (_masked(new, mask), h, new)

    def gradient(node: Node, *arrived: Value | None) -> Gradients:
        h, new = node.outs[2:]

        def back(dh: Value, slope: Value, *ended: Value) -> Stepped:
            dz = dh * slope
            return (layer.back_product(back_weight, dz, *(dh * factor for factor in ended)),), (dz,)

        back_weight = layer.for_back(layer.r)
        factors = [layer.running(gate.slope(new)), *layer.carried(None)]
        first, dz = layer.backward(back, [back_weight], arrived, factors)
        return first, dz, *_unmoved(layer), layer.weight_gradient(dz, h)

    return layer.forward(step, [layer.r], layer.projected(layer.biases), gradient)


def _total(biases: Sequence[Value]) -> Sequence[Value]:
    return [biases[0] + biases[1]] if len(biases) == 2 else biases


def _held(new: Value, old: Value, mask: Sequence[Value]) -> Value:
    """The next state: the old one where the sequence has ended."""
    return new * mask[0] + old * (1.0 - mask[0]) if mask else new


def _masked(new: Value, mask: Sequence[Value]) -> Value:
    return new * mask[0] if mask else new


def _unmoved(layer: Layer) -> tuple[None, ...]:
    """The gradient of the mask, if there is one."""
    return () if layer.mask is None else (None,)
