"""The package's version; the build reads it here."""

__version__ = "0.1.0"
DISTRIBUTION = "interpcore"
"""What pyproject.toml calls the distribution; whoever publishes it under another name changes both."""
