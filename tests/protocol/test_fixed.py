"""The blob of what a plan hands over once: any tensors come back as they were, and nothing else does."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from whimbrel_protocol import fixed
from whimbrel_protocol.errors import Code, WireError
from whimbrel_protocol.messages import Binding

DTYPES = ("float32", "float64", "int64", "int32", "int8", "uint8", "bool")
TENSORS = st.lists(st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0))), max_size=4)

TWO = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, -1], np.int64)]
BOUND = [Binding("frozen", "w", "float32", (2, 3)), Binding("local", "n", "int64", (2,))]


@given(TENSORS)
def test_tensors_come_back_as_they_were(tensors: list[fixed.Array]) -> None:
    bindings = [Binding("frozen", f"t{i}", one.dtype.name, one.shape) for i, one in enumerate(tensors)]
    found = fixed.decode(fixed.encode(tensors), bindings)
    assert list(found) == [one.name for one in bindings]
    for one, back in zip(tensors, found.values(), strict=True):
        assert back.dtype == one.dtype
        np.testing.assert_array_equal(back, one)


@pytest.mark.parametrize(
    ("bindings", "code"),
    [
        (BOUND[:1], Code.BAD_DELTA),
        ([*BOUND, Binding("local", "more", "uint8", (1,))], Code.BAD_DELTA),
        ([replace(BOUND[0], shape=(2, 4)), BOUND[1]], Code.BAD_DELTA),
        ([replace(BOUND[0], shape=(2**20, 2**20)), BOUND[1]], Code.BAD_FIELD),
        ([replace(BOUND[0], role="param"), BOUND[1]], Code.BAD_FIELD),
        ([replace(BOUND[0], dtype="object"), BOUND[1]], Code.BAD_FIELD),
    ],
    ids=["one too few", "one too many", "another shape", "more than fits", "a role that is not fixed", "no such type"],
)
def test_other_bindings_are_refused(bindings: list[Binding], code: Code) -> None:
    with pytest.raises(WireError) as caught:
        fixed.decode(fixed.encode(TWO), bindings)
    assert caught.value.code is code


@pytest.mark.parametrize("cut", [0, 5, -1])
def test_a_damaged_blob_is_refused(cut: int) -> None:
    with pytest.raises(WireError) as caught:
        fixed.decode(fixed.encode(TWO)[:cut], BOUND)
    assert caught.value.code is Code.BAD_DELTA
