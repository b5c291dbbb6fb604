"""What a step reports: sums that can be added over steps, devices and masks, and the mean that is trained on."""

from whimbrel_server.compiler.ir import Value

LEAST_WEIGHT = 1e-12  # an all-zero mask gives a mean of 0 and not NaN


def weighted_sums(losses: Value, weight: Value) -> dict[str, Value]:
    """`@loss_sum` = sum(w*l) and `@weight_sum` = sum(w), scalars."""
    return {
        "@loss_sum": (weight * losses).sum(range(losses.rank), keepdims=False),
        "@weight_sum": weight.sum(range(weight.rank), keepdims=False),
    }


def weighted_mean(sums: dict[str, Value]) -> Value:
    """sum(w*l) / max(sum(w), 1e-12)."""
    total, weight = sums["@loss_sum"], sums["@weight_sum"]
    return total / weight.graph.op("Max", weight, weight.like(LEAST_WEIGHT))


def correct_sum(logits: Value, label: Value, weight: Value) -> Value:
    """Sum of the weights where the largest logit (axis 1, the first of equals) is the label's."""
    best = logits.graph.op("ArgMax", logits, axis=1, keepdims=0)
    hits = logits.graph.op("Equal", best, label).cast(weight.dtype)
    return (weight * hits).sum(range(weight.rank), keepdims=False)
