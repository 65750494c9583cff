"""Numbers of things in sentences."""


def counted(n: int, thing: str) -> str:
    """Return a number with the noun for what it counts.

    >>> counted(1, "row"), counted(2000, "learned row")
    ('1 row', '2,000 learned rows')
    """
    return f"{n:,} {thing}{'' if n == 1 else 's'}"
