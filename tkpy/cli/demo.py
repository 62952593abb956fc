"""``tkpy demo``."""


def demo() -> None:
    """Not yet."""
