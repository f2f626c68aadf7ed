"""Every name of scikit-learn and joblib that this package uses and their references do not promise, in one place.

The comment beside a name says in which version it was seen.
"""

from joblib.parallel import get_active_backend  # joblib 1.6.0: imported by other projects, not in its reference

__all__ = ["get_active_backend"]
