"""The list of what the robustness benchmark tried, as it is printed."""


class Checks:
    """Prints what was tried and counts what failed."""

    def __init__(self) -> None:
        self.failed = 0

    def note(self, text: str) -> None:
        """Print something that was tried or measured, and that cannot fail."""
        print(f"     {text}", flush=True)

    def check(self, passed: bool, text: str) -> None:
        """Print something that must hold; it counts as a failure where it does not."""
        self.failed += not passed
        print(f"{'ok  ' if passed else 'FAIL'} {text}", flush=True)
