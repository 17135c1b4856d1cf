"""
Imported first by the scripts: what takes seconds to import, and what may not be installed, in one line each.
"""
import sys

try:
    import numpy  # noqa: F401
    import torch  # noqa: F401
except (ImportError, OSError) as e:                     # not there, or a library of theirs that does not load
    lines = str(e).strip() or type(e).__name__
    print(f"error: numpy or torch cannot be loaded ({lines.splitlines()[0]}); pip install -r requirements.txt",
          file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)
