"""Change what an open-weight language model knows, without retraining: facts in, a small reversible patch out."""

import lazy_loader

# The public names are listed once, in __init__.pyi. Each is imported when it is first used: PyTorch takes seconds, and
# whoever asks for help should not wait for it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.2.0"
