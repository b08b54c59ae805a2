"""What the files of a checkpoint are called. Imports nothing."""

STATE_NAME = "state.json"
MODEL_CONFIG_NAME = "model_config.json"


def data_name(rank: int) -> str:
    """Returns the name of a rank's fragments."""
    return f"rank-{rank:04d}.bin"


def index_name(rank: int) -> str:
    """Returns the name of a rank's index."""
    return f"rank-{rank:04d}.json"


def own_state_name(rank: int) -> str:
    """Returns the name of a rank's own copy of the state, in the node-local tier."""
    return f"rank-{rank:04d}.state.json"
