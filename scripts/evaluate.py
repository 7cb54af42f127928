"""Scores a model on a benchmark; the same as `amd-hf evaluate`.

python scripts/evaluate.py davis2016 --data DAVIS/ --adapt-steps 100 --controls --output FILE.json
"""

import sys

from amd_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
