"""`tvm-sparse collect-env`: what a bug report should say about the machine."""

from __future__ import annotations

from tvm_sparse.cli.options import JsonFlag


def command(json: JsonFlag = False) -> None:
    """Print the versions, processor, GPUs and compilers that matter."""
    from tvm_sparse.cli.output import show_pairs, to_json
    from tvm_sparse.deploy.environment import collect_env

    environment = collect_env()
    if json:
        print(to_json(environment))
        return
    show_pairs(environment)
