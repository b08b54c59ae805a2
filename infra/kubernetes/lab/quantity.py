"""Amounts as Kubernetes writes them: `500m`, `2`, `8Gi`, `1e3`."""

_FACTORS = {
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}


def parse(text: str) -> float:
    """Returns an amount in its unit: cores, bytes, pieces. Raises: ValueError."""
    for suffix in sorted(_FACTORS, key=len, reverse=True):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * _FACTORS[suffix]
    return float(text)
