"""Every gradient rule against central finite differences, and every lowering against stock onnxruntime.

A case is one operator with all float operands trained; a rule or lowering without a case fails the suite.
"""

import pytest

from tests.compiler.cases import CASES
from tests.compiler.cases.case import is_differentiable, opsets
from tests.compiler.measuring import distinct_forms, forward_error, gradient_error, rounding_error
from whimbrel_server.compiler.rules import LOWERINGS, RULES, STOPS

AT_EACH_OPSET = [pytest.param(name, opset, id=f"{name}-{opset}") for name, case in CASES.items() for opset in opsets(case)]
DIFFERENTIABLE = [name for name, case in CASES.items() if opsets(case) and is_differentiable(case)]


def test_every_rule_and_lowering_has_a_case() -> None:
    assert {case.op for case in CASES.values()} >= set(RULES) | set(LOWERINGS) | set(STOPS)


@pytest.mark.parametrize("name", CASES)
def test_each_case_is_legal_at_some_opset(name: str) -> None:
    assert opsets(CASES[name])


@pytest.mark.parametrize(("name", "opset"), AT_EACH_OPSET)
def test_forward_equals_onnxruntime(name: str, opset: int) -> None:
    assert forward_error(CASES[name], opset) <= 1e-6


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_equals_finite_difference(name: str) -> None:
    for opset in distinct_forms(CASES[name]).values():
        assert gradient_error(CASES[name], opset) <= CASES[name].accept, opset


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_on_onnxruntime_equals_float64(name: str) -> None:
    for opset in distinct_forms(CASES[name]).values():
        assert rounding_error(CASES[name], opset) <= 1e-5, opset
