"""Turn a base language model into a reasoning model, and measure when thinking pays."""

__version__ = "0.1.0"
