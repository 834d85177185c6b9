"""The choice of an implementation: the one place that knows which exist on which device."""

IMPLEMENTATIONS = ("xla",)


def choose(implementation: str | None) -> str:
    """The implementation to run: the caller's, or for None the best one for the device.

    Raises ValueError for a name that is not in `IMPLEMENTATIONS`.
    """
    if implementation is None:
        return "xla"
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"`implementation` is {implementation!r}: it must be None or one of {known}")
    return implementation
