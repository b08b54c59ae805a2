"""A Kubernetes cluster on one machine: a real control plane, and nodes that run pods as processes. Standard library only."""
