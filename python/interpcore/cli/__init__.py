"""Command line of interpcore."""


def main() -> None:
    """Run the `interpcore` command."""
