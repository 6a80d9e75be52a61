"""`python -m tvm_sparse.cli`: the command line where nothing is installed."""

import sys

from tvm_sparse.cli import main

sys.exit(main())
