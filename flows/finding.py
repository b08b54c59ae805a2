"""A finding of `headrace doctor`, as plain data: `level` (`ok`, `warning`, `error`), `subject`, `what`, `mend`."""

Finding = dict[str, str]


def finding(level: str, subject: str, what: str, mend: str = "") -> Finding:
    """Returns a finding. What is not `ok` has a mend."""
    return {"level": level, "subject": subject, "what": what, "mend": mend}
