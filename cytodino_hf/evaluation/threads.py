"""How many threads the numbers of a report take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Let NumPy, SciPy and scikit-learn use one thread each; also a decorator (`@one_thread()`).

    The products of a report are small: more threads mostly wait for each other, which costs processor time on a busy
    machine, and sums in another order would change the last digits from machine to machine.
    """
    # Only libraries that are loaded by now can be told.
    import scipy.linalg  # noqa: F401
    import sklearn.manifold  # noqa: F401
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield
