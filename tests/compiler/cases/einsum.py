"""Cases of `rules/einsum.py`."""

from tests.compiler.cases.case import Case

EQUATIONS = {
    "attention": ("bqhd,bkhd->bhqk", [2, 3, 2, 4], [2, 5, 2, 4]),
    "batched": ("bij,bjk->bik", [2, 3, 4], [2, 4, 5]),
    "broadcast": ("...ij,...jk->...ik", [2, 1, 3, 4], [1, 5, 4, 2]),
    "broadcast-size-one": ("bi,bi->bi", [3, 1], [1, 4]),
    "ellipsis-ends": ("i...,i...->...", [3, 2, 4], [3, 2, 4]),
    "ellipsis-implicit": ("...i,i", [2, 3, 4], [4]),
    "everything": ("ij,ij->", [3, 4], [3, 4]),
    "implicit": ("ij,jk", [3, 4], [4, 2]),
    "implicit-sorted": ("ba", [3, 4]),
    "inner": ("i,i->", [4], [4]),
    "one-alone-summed": ("ijk,jl->il", [2, 3, 4], [3, 5]),
    "outer": ("i,j->ij", [3], [4]),
    "spaced": (" i j , j k -> k i ", [3, 4], [4, 2]),
    "sum": ("ijk->j", [2, 3, 4]),
    "three": ("ab,bc,cd->ad", [2, 3], [3, 4], [4, 5]),
    "three-shared": ("bi,bj,bij->b", [2, 3], [2, 4], [2, 3, 4]),
    "transpose": ("ij->ji", [3, 4]),
}

CASES = {
    f"einsum-{name}": Case("Einsum", tuple(shapes), {"equation": equation}) for name, (equation, *shapes) in EQUATIONS.items()
}
