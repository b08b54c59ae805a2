"""MACHINES: how work gets onto machines and stays alive there. Knows no stage; imports nothing from `tasks` or `flows`."""
