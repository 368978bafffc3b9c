"""`accelerate launch scripts/train.py AGENT ...` is `lmdiff train AGENT ...` in each process."""

import sys

from lmdiff.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
