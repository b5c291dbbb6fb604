"""What `check` found, in words for the model's author.

Only wording belongs here; every number is in `facts.py`, as `--json` gives it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from whimbrel_lab.check.facts import Facts, Learning, Slope, Source, Step

WIDTH, LABEL = 128, 12
NAMES = 6  # of weights that are spelt out


def report(found: Facts) -> str:
    """The report: what was read, what is trained, what a round costs, whether it learns; at the end one verdict."""
    lines: list[tuple[str, str]] = []
    lines += _source(found.source) if found.source else []
    lines += _step(found.step, found.source) if found.step and found.source else []
    lines += [("gradient", _slope(found.gradient, "float32"))] if found.gradient else []
    lines += [("exact", _slope(found.exact, "float64"))] if found.exact else []
    lines += _learning(found.learning) if found.learning else []
    return "\n".join([*(_wrapped(label, text) for label, text in lines), _verdict(found)])


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"{label:{LABEL}}", subsequent_indent=" " * LABEL, break_on_hyphens=False)


def _source(source: Source) -> Iterator[tuple[str, str]]:
    count = sum(source.operators.values())
    by = f", by {source.producer}" if source.producer else ""
    yield "model", f"{source.file}: {size(source.bytes)}, opset {source.opset}{by}, {count} nodes"
    for kind, tensors in (("input", source.inputs), ("output", source.outputs)):
        for one in tensors:
            declared = ", ".join(map(str, one.declared))
            tried = "" if list(one.declared) == list(one.tried) else f", here {list(one.tried)}"
            yield kind, f"{one.name}: {one.dtype} [{declared}]{tried}"
    for note in source.notes:
        yield "note", note
    yield "operators", counts(source.operators)
    yield "loss", f"{source.loss} on {source.output!r} ({source.loss_because})"


def _step(step: Step, source: Source) -> Iterator[tuple[str, str]]:
    yield "trained", f"{step.values:,} values in {len(step.trained)} tensors: {_names(list(step.trained))}"
    if step.frozen:
        yield "frozen", f"{sum(step.frozen.values()):,} values in {len(step.frozen)} tensors: {_names(list(step.frozen))}"
    if step.given_up:
        yield "given up", f"{len(step.given_up)} of them since no gradient reaches them: {_names(step.given_up)}"
    if step.unused:
        yield "unused", f"the loss does not depend on {_names(step.unused)}"
    if step.cut:
        yield (
            "cut",
            f"the loss is computed from the input of the final activation {step.cut!r}, which is exact where it saturates",
        )
    share = step.packed_bytes / max(step.model_packed_bytes, 1)
    packed = f"{size(step.packed_bytes)} on the wire ({share:.1%} of the model)"
    yield "train step", f"batch {step.batch}, {packed}, compiled in {step.compile_s:.1f} s; uses {', '.join(step.operators)}"
    down = f"down at most {size(step.down_bytes)} the first time, then differences"
    yield "a round", f"{size(step.up_bytes)} up (masked, 16 bits a value); {down}"


def _slope(slope: Slope, kind: str) -> str:
    text = (
        f"{slope.by_gradient:.6g} along a random direction over all trained values, {slope.by_difference:.6g} by central "
        f"differences in {kind}: relative error {slope.error:.1e} (eps {slope.eps:.1e}, they agree to {slope.spread:.0e})"
    )
    if not slope.decided:
        return f"{text}; undecided: the loss is too {'rough' if slope.by_difference else 'flat'} here for {kind}"
    return text if slope.right else f"{text}; not equal"


def _learning(learning: Learning) -> Iterator[tuple[str, str]]:
    losses = learning.losses
    yield (
        "learning",
        (
            f"{learning.optimizer}, learning rate {learning.rate:g} (the largest of a few that works): loss {losses[0]:.6g} -> "
            f"{losses[-1]:.6g} over {len(losses) - 1} steps on one random batch"
        ),
    )
    yield (
        "here",
        f"{learning.step_ms:.2f} ms a step on one thread, {learning.peak_mb:.0f} MB peak memory of the training process",
    )


def _verdict(found: Facts) -> str:
    if found.refusal:
        return _wrapped("REFUSED", found.refusal)
    if found.ok and found.step is not None:
        part = "in part (see what is given up)" if found.step.given_up else "as asked"
        return _wrapped("OK", f"this model trains on stock onnxruntime, {part}")
    why = "the gradient is not the slope of the loss" if found.wrong else "the loss did not go down over the steps"
    return _wrapped("FAILED", why)


def counts(operators: Mapping[str, int]) -> str:
    """Operators with how often each occurs, the most frequent first."""
    ordered = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered)


def size(count: int) -> str:
    """Bytes in the largest decimal unit that leaves a number of at least 1."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count} bytes"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES])
    return shown if len(names) <= NAMES else f"{shown} and {len(names) - NAMES} more"
