"""Entry point of a training process: `python -m pretrain.train CONFIG [key=value …]`. Launchers and batch scripts name it."""

import sys

from pretrain.training.process import main

if __name__ == "__main__":
    main(sys.argv[1:])
