"""Write one of the example networks: python -m examples.networks resnet50 -o resnet50.onnx."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # started as `python examples/networks`: the repo root is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from examples.networks import NAMES, build
from tvm_sparse.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, write the file and return the exit code."""
    parser = argparse.ArgumentParser(prog="examples.networks", description="write a seeded, pruned network as ONNX")
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("-o", "--output", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument("--sparsity", type=float, default=0.9, help="of every convolution but the first (default 0.9)")
    parser.add_argument("--linear-sparsity", type=float, default=0.0, help="of every linear layer (default 0: dense)")
    parser.add_argument("--batch", type=int, default=1, help="batch size (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default 0)")
    options = parser.parse_args(arguments)
    try:
        model = build(
            options.name,
            batch=options.batch,
            sparsity=options.sparsity,
            seed=options.seed,
            linear_sparsity=options.linear_sparsity,
        )
        options.output.write_bytes(model.SerializeToString())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: cannot write {options.output}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
