"""Entry point of the node check: `python -m pretrain.node_check CONFIG`, one process a node. Batch scripts name it."""

from pretrain.health.nodes.check_nodes import main

if __name__ == "__main__":
    main()
