"""Cases of `rules/indexing.py`. Numbers that meet in a maximum are drawn far enough apart for finite differences."""

import numpy as np

from tests.compiler.cases.case import Case, ints

PAIRS = np.array([[[1, 2], [0, -1]], [[1, 2], [1, 0]]])
PLACES = np.array([[3, 0], [-2, 1]])

CASES = {
    "gather": Case("Gather", ([5, 3], np.array([[1, 1], [-1, 0]]))),
    "gather-axis": Case("Gather", ([2, 5, 3], np.array([[4, 1, 1], [0, -2, 4]])), {"axis": 1}),
    "gather-last": Case("Gather", ([2, 3, 4], ints(2, 0, 2)), {"axis": -1}),
    "gather-permuted": Case("Gather", ([2, 4, 3], np.array([[1, -1], [0, 2]])), {"axis": 1}),
    "gather-scalar": Case("Gather", ([3, 4], np.array(-1)), {"axis": 1}),
    "gather-stepped": Case("Gather", ([2, 7], np.array([[5], [3], [1]])), {"axis": 1}),
    "gather-elements": Case("GatherElements", ([3, 4], np.array([[1, 1], [3, 0], [2, 2]])), {"axis": 1}),
    "gather-elements-long": Case("GatherElements", ([2, 70, 2], np.array([[[69, -70]]])), {"axis": 1}),
    "gather-elements-rows": Case("GatherElements", ([3, 2], np.array([[2, -3]])), {"axis": -2}),
    "gather-nd": Case("GatherND", ([2, 3, 4], PAIRS)),
    "gather-nd-batches": Case("GatherND", ([2, 3, 4], PLACES[..., None] % 3), {"batch_dims": 1}),
    "gather-nd-elements": Case("GatherND", ([4, 3], PLACES)),
    "non-zero": Case("NonZero", (np.array([[0, 2], [3, 0]]),)),
    "scatter": Case("Scatter", ([2, 4], np.array([[3], [0]]), [2, 1]), {"axis": 1}, opset=9),
    "scatter-elements": Case("ScatterElements", ([2, 4], PLACES, [2, 2]), {"axis": 1}),
    "scatter-elements-add": Case("ScatterElements", ([4, 2], PLACES * 0 - 1, [2, 2]), {"reduction": "add"}),
    "scatter-elements-again": Case("ScatterElements", ([2, 4], np.array([[3, 0, 3], [2, 2, 2]]), [2, 3]), {"axis": 1}),
    "scatter-elements-max": Case("ScatterElements", ([2, 4], PLACES, [2, 2]), {"axis": -1, "reduction": "max"}),
    "scatter-elements-min": Case("ScatterElements", ([2, 4], PLACES, [2, 2]), {"axis": 1, "reduction": "min"}),
    "scatter-nd": Case("ScatterND", ([4, 3], np.array([[2], [-4]]), [2, 3])),
    "scatter-nd-again": Case("ScatterND", ([4, 3], np.array([[2], [-4], [2], [0]]), [4, 3])),
    "scatter-nd-add": Case("ScatterND", ([2, 3, 4], PAIRS, [2, 2, 4]), {"reduction": "add"}),
    "scatter-nd-max": Case("ScatterND", ([4, 3], np.array([[2, 1], [2, 1], [-1, 0]]), [3]), {"reduction": "max"}),
    "scatter-nd-min": Case("ScatterND", ([4, 3], np.array([[1], [3]]), [2, 3]), {"reduction": "min"}),
    "top-k": Case("TopK", ([3, 5], ints(2)), outputs=("y", "places")),
    "top-k-attribute": Case("TopK", ([3, 5],), {"k": 2, "axis": 0}, outputs=("y", "places")),
    "top-k-smallest": Case("TopK", ([4, 3], ints(3)), {"axis": 0, "largest": 0}, outputs=("y", "places")),
}
