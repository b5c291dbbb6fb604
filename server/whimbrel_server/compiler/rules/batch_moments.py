"""Batch normalisation of a matrix product by the moments of what goes into the product.

The batch's mean and variance of `u = W x` follow from those of x: mean u = W mean x, var u = diag(W cov(x) W').
Where x has far fewer channels than u, as before an expanding pointwise convolution, neither statistics nor
gradient ever pass over u, which is not even stored: the normalised u is one product with scaled weights.
"""

from whimbrel_server.compiler.graph.draft import made_by
from whimbrel_server.compiler.graph.ir import Node, Value
from whimbrel_server.compiler.graph.layout import samples_first, swapped_planes
from whimbrel_server.compiler.rules import costs


def by_moments(u: Value, scale: Value, bias: Value, epsilon: float) -> tuple[Value, Value, Value] | None:
    """The normalised `u [N, M, ...]`, its mean and its biased variance `[M]`; None where u is no product that gains by it."""
    product = _product(u)
    if product is None or product[0].shape[1] ** 2 > costs.MOMENTS_PER_CHANNEL * u.shape[1]:
        return None
    w, columns = product[0], product[1]
    middle = columns.sum([1]) * (1.0 / columns.shape[1])
    centred = columns - middle
    covariance = u.graph.op("Gemm", centred, centred, transB=1) * (1.0 / columns.shape[1])
    variance = ((w @ covariance) * w).sum([1])
    mean = w @ middle + product[2] if product.has(2) else w @ middle
    slope = scale.reshape([-1, 1]) / u.graph.op("Sqrt", variance + epsilon)
    y = u.graph.op("Gemm", w * slope, centred, bias.reshape([-1, 1]))
    moved = samples_first(y.reshape([u.shape[1], u.shape[0], *u.shape[2:]]))
    return moved, mean.reshape([-1]), variance.reshape([-1])


def _product(u: Value) -> Node | None:
    """The product that made `u`, channels first and without transposes or factors."""
    planes = swapped_planes(u)
    rows = made_by(planes, "Reshape") if planes else None
    product = made_by(rows[0], "Gemm") if rows else None
    plain = product is not None and not product.attrs and product.y.shape[0] == u.shape[1]
    return product if plain else None
