"""Names for what pyarrow, which ships no types, hands around: they say what is meant, checkers see Any."""

from typing import Any, TypeAlias

import numpy as np
import pyarrow.compute
from numpy.typing import NDArray

Column: TypeAlias = Any
RecordBatch: TypeAlias = Any
Schema: TypeAlias = Any
Table: TypeAlias = Any

compute: Any = pyarrow.compute
"""Its functions are made at import."""


def to_numpy(column: Column) -> NDArray[Any]:
    """View numbers without nulls, a column or an array of them, as a read-only array.

    pyarrow's own `to_numpy` imports pandas: 36 MB in each process that reads.
    """
    return np.from_dlpack(column.combine_chunks() if hasattr(column, "combine_chunks") else column)
