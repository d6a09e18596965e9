"""`python -m pretrain` is the `pretrain` command, for where its script is not on the path."""

from pretrain.cli.main import main

if __name__ == "__main__":
    main()
