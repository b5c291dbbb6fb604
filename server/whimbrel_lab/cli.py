"""`whimbrel-lab`: what needs both sides, or a training runtime, in one place.

What belongs here: commands and their options. What does not: what they do. A command whose libraries are not installed
says which extra brings them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

MISSING = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, 1 where the result is not what it must be, 2 for trouble, 3 for a missing extra."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except ModuleNotFoundError as error:
        print(f"{error.name} is missing: pip install 'whimbrel[lab]'", file=sys.stderr)
        return MISSING
    except KeyboardInterrupt:
        return 130
    return status


def _demo(arguments: argparse.Namespace) -> int:
    from whimbrel_lab.fleet.world import WorldError
    from whimbrel_lab.runs import demo

    chosen = {name: getattr(arguments, name) for name in ("devices", "rounds", "dropout", "seed", "out", "keep")}
    try:
        result = demo.run(demo.Options(**chosen))
    except WorldError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0 if result["masked_equals_plain"] else 1


def _learn(arguments: argparse.Namespace) -> int:
    from whimbrel_lab.fleet.world import WorldError
    from whimbrel_lab.runs import learn

    if arguments.lora and arguments.kind != "transformer":
        print("learn: --lora is for the transformer", file=sys.stderr)
        return 2
    chosen = {name: getattr(arguments, name) for name in ("kind", "devices", "rounds", "dropout", "seed", "lora")}
    try:
        with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
            result = learn.run(learn.Options(**chosen))
    except WorldError as error:
        print(f"learn: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result) if arguments.json else learn.shown(result))
    return 0 if learn.is_exact(result) else 1


def _window(arguments: argparse.Namespace) -> int:
    from whimbrel_lab.fleet.world import WorldError
    from whimbrel_lab.runs import big_window

    chosen = {name: getattr(arguments, name) for name in ("members", "parameters", "bits", "dropout", "seed")}
    try:
        print(json.dumps(big_window.run(big_window.Options(**chosen))))
    except WorldError as error:
        print(f"window: {error}", file=sys.stderr)
        return 2
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from whimbrel_lab.bench import costs, kernels, steps

    if arguments.what == "costs":
        costs.main()
    if arguments.what in ("all", "kernels"):
        kernels.main()
    if arguments.what in ("all", "steps"):
        chosen = {name: getattr(arguments, name) for name in ("torch", "models", "threads")}
        steps.main(steps.Options(**{name: value for name, value in chosen.items() if value is not None}))
    return 0


def _codec(arguments: argparse.Namespace) -> int:
    from whimbrel_lab.runs import codec
    from whimbrel_protocol.errors import ProtocolError

    chosen = {name: getattr(arguments, name) for name in ("model", "bits", "data", "devices", "loss", "seed")}
    try:
        codec.run(codec.Options(**chosen), arguments.json)
    except (ProtocolError, OSError) as error:
        print(f"codec: {error}", file=sys.stderr)
        return 2
    return 0


def _check(arguments: argparse.Namespace) -> int:
    for library in ("onnx", "onnxruntime"):  # what the command's child processes need: say here what is missing
        import_module(library)
    from whimbrel_lab.check import command
    from whimbrel_lab.check.facts import Options

    names = ("file", "loss", "output", "batch", "init", "optimizer", "lora", "head", "exact", "seed", "timeout_s")
    chosen = {name: getattr(arguments, name) for name in names}
    trainable = tuple(arguments.trainable)
    options = Options(**chosen, trainable=trainable, inputs=dict(arguments.input), values=dict(arguments.value))
    return command.run(options, arguments.json)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    shape = tuple(int(size) for size in sizes.split(","))
    if not name or min(shape) < 1:
        raise argparse.ArgumentTypeError("expected NAME=SIZE,SIZE,... with sizes of at least 1")
    return name, shape


def _value(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError("expected NAME=NUMBER")
    return name, float(number)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _widths(text: str) -> tuple[int, ...]:
    widths = tuple(int(part) for part in text.split(","))
    if not all(8 <= width <= 32 for width in widths):
        raise argparse.ArgumentTypeError("a value takes 8 to 32 bits")
    return widths


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError("a share is at least 0 and below 1")
    return value


def _devices(text: str) -> int:
    value = int(text)
    if not 16 <= value <= 200:
        raise argparse.ArgumentTypeError("the demo runs 16 to 200 devices")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="whimbrel-lab", description="Try, show and measure whimbrel on one machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="train digits on devices that come and go, masks on, and prove every sum")
    demo.add_argument("--devices", type=_devices, default=40)
    demo.add_argument("--rounds", type=int, default=22)
    demo.add_argument("--dropout", type=_share, default=0.2, help="share of devices that vanish in each round")
    demo.add_argument("--seed", type=int, default=1)
    demo.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the accuracy curve")
    demo.add_argument("--keep", action="store_true", help="keep the servers' and devices' directories")
    demo.set_defaults(run=_demo)
    _add_learn(commands)
    window = commands.add_parser("window", help="measure one window of many members with a large model over real HTTP")
    window.add_argument("--members", type=_devices, default=128)
    window.add_argument("--parameters", type=int, default=1_000_000)
    window.add_argument("--bits", type=int, default=16)
    window.add_argument("--dropout", type=_share, default=0.1)
    window.add_argument("--seed", type=int, default=1)
    window.set_defaults(run=_window)
    codec = commands.add_parser("codec", help="measure what so many bits a value cost, on real updates of a model")
    codec.add_argument("model", type=Path, metavar="MODEL", help="an ONNX file")
    codec.add_argument("--bits", type=_widths, default=(8, 12, 16, 21), metavar="B,B,...", help="default 8,12,16,21")
    codec.add_argument("--data", type=Path, metavar="FILE", help="an .npz file of the model's inputs and `label`; else digits")
    codec.add_argument("--devices", type=int, default=32, help="how many train and are summed (default 32)")
    codec.add_argument("--loss", default="softmax_cross_entropy", help="default softmax_cross_entropy")
    codec.add_argument("--seed", type=int, default=1)
    codec.add_argument("--json", action="store_true", help="one object instead of a table")
    codec.set_defaults(run=_codec)
    _add_check(commands)
    bench = commands.add_parser("bench", help="print speed ratios, each against its baseline in the same run")
    bench.add_argument("what", nargs="?", choices=("all", "kernels", "steps", "costs"), default="all")
    torch = os.environ.get("WHIMBREL_TORCH_PYTHON") or (sys.executable if importlib.util.find_spec("torch") else None)
    bench.add_argument(
        "--torch", metavar="PYTHON", default=torch, help="an interpreter that has torch ($WHIMBREL_TORCH_PYTHON)"
    )
    bench.add_argument("--models", type=lambda text: tuple(text.split(",")), metavar="M,M,...", help="which train steps")
    bench.add_argument("--threads", type=_counts, metavar="T,T,...", help="default 1,2")
    bench.set_defaults(run=_bench)
    return parser


def _add_learn(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    learn = commands.add_parser("learn", help="train one kind of net on real devices, masks on, beside central training")
    learn.add_argument("kind", choices=("cnn", "transformer", "recurrent", "volume"))
    learn.add_argument("--devices", type=_devices, default=20)
    learn.add_argument("--rounds", type=int, default=0, help="default: as many as the lesson has")
    learn.add_argument("--dropout", type=_share, default=0.1, help="share of devices that vanish in each round")
    learn.add_argument("--seed", type=int, default=1)
    learn.add_argument("--lora", type=int, default=0, metavar="RANK", help="transformer: adapters against all weights")
    learn.add_argument("--json", action="store_true", help="one object; the progress goes to standard error")
    learn.set_defaults(run=_learn)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser("check", help="tell whether an ONNX model trains on devices, what a round costs, and try it")
    check.add_argument("file", metavar="FILE.onnx")
    check.add_argument("--loss", default="auto", help="the compiler's losses by name; default: one that fits the output")
    check.add_argument("--output", metavar="NAME", help="the output to train on; default: the first of real numbers")
    trainable = "auto (the largest part that can be), all, last:K, biases, norms, or patterns of weight names"
    check.add_argument("--trainable", nargs="+", default=["auto"], metavar="WHAT", help=f"{trainable}; default auto")
    check.add_argument("--input", action="append", type=_shape, default=[], metavar="NAME=4,2048", help="an input's shape")
    check.add_argument("--value", action="append", type=_value, default=[], metavar="NAME=16000", help="a scalar input")
    check.add_argument("--batch", type=_positive, metavar="N", help="examples a step, where the file leaves it open")
    check.add_argument("--init", choices=["he"], default="", help="random values for weights that the file leaves out")
    check.add_argument("--optimizer", choices=["sgd", "momentum", "nesterov", "adam", "adamw"], default="sgd")
    check.add_argument("--lora", type=_positive, default=0, metavar="RANK", help="train low-rank adapters only")
    check.add_argument("--head", type=_positive, default=0, metavar="CLASSES", help="a new final layer of so many classes")
    check.add_argument("--exact", action="store_true", help="check the gradient in float64 too (slow)")
    check.add_argument("--seed", type=int, default=1)
    check.add_argument("--timeout", dest="timeout_s", type=float, default=1800.0, metavar="SECONDS")
    check.add_argument("--json", action="store_true", help="one object instead of a report")
    check.set_defaults(run=_check)


if __name__ == "__main__":
    sys.exit(main())
