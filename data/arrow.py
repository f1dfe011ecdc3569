"""Names for what pyarrow, which ships no types, hands around: they say what is meant, checkers see Any."""

from typing import Any, TypeAlias

import pyarrow.compute

Column: TypeAlias = Any
RecordBatch: TypeAlias = Any
Schema: TypeAlias = Any
Table: TypeAlias = Any

compute: Any = pyarrow.compute
"""Its functions are made at import."""
