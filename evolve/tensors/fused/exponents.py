"""The compiled search for a NaN or an infinity. Imported on first use, as the kernel is."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy")
def no_full_exponent(words, mask):
    """Return whether no word has all bits of ``mask`` set."""
    full = words.dtype.type(mask)
    for low in range(0, words.size, 8192):
        part = words[low : low + 8192]
        found = np.int32(0)
        for i in range(part.size):
            found |= np.int32((part[i] & full) == full)
        if found:
            return False
    return True
