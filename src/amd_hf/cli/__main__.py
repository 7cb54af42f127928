"""`python -m amd_hf.cli`, the command `amd-hf` for launchers such as `torchrun`."""

import sys

from amd_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
