"""The process that builds or measures candidates: it may crash, hang or leak, and is then replaced.

    python -m tvm_sparse.tuning.worker DESCRIPTOR

It answers calls of module-level functions, one at a time, over a connection, until that is closed.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import traceback
from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1


def main() -> None:
    # A worker whose tuner was killed must not go on, least of all one that hangs.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # TVM imports torch where there is one, for half of its start-up time; nothing here needs it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    connection = Connection(int(sys.argv[1]))
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*arguments))
        except Exception as error:
            answer = (False, (f"{type(error).__name__}: {error}", traceback.format_exc()))
        connection.send(answer)


if __name__ == "__main__":
    main()
