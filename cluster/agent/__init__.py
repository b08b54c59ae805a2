"""What runs on a node: the agent (starts, watches, kills, publishes), its zygote, and the processes that the zygote forks. Never torch."""
