"""Documents from parquet files, by batches of rows; pyarrow is imported when the first such file is met."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from fast_electra.corpus.documents import EXCERPT, Document, Rejected, decoded, of_value
from fast_electra.corpus.streams import OPENERS, StreamError, chunks
from fast_electra.settings import UserError


def read_parquet(path: Path, field: str, limit: int) -> Iterator[Document | Rejected]:
    """Batches of rows of one column; a row group that cannot be read is rejected, and those after it are still read."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from None
    broken = (arrow.ArrowException, OSError, ValueError)
    try:
        stream = _seekable(path)
    except StreamError as error:
        yield Rejected(str(path), error.reason, str(error)[:EXCERPT])
        return
    try:
        # By default pyarrow reads a whole row group ahead, and that may be the whole file.
        file = parquet.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
    except broken as error:
        stream.close()
        yield Rejected(str(path), "unreadable parquet", str(error)[:EXCERPT])
        return
    with stream, file:
        if field not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            yield Rejected(str(path), "no text field", f"{file.metadata.num_rows} rows; columns: {columns}"[:EXCERPT])
            return
        row = 1
        for group in range(file.num_row_groups):
            next_row = row + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[field]):
                    yield from _cells(batch.column(0), path, row)
                    row += batch.num_rows
            except broken as error:
                excerpt = f"rows {row} to {next_row - 1}: {error}"
                yield Rejected(f"{path}:{row}", "unreadable parquet", excerpt[:EXCERPT])
            row = next_row


def _cells(column: Any, path: Path, row: int) -> Iterator[Document | Rejected]:
    """Strings are taken as bytes, so that broken UTF-8 costs one row and not its batch."""
    import pyarrow as arrow

    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
        column = column.cast(arrow.large_binary())
    for number, value in enumerate(column.to_pylist(), start=row):
        source = f"{path}:{number}"
        yield decoded(value, source) if isinstance(value, bytes) else of_value(value, source, str(value)[:EXCERPT])


def _seekable(path: Path) -> IO[bytes]:
    """Parquet is read from its end: what is compressed as a whole is first unpacked to a nameless temporary file."""
    if path.suffix not in OPENERS:
        return path.open("rb")
    with ExitStack() as stack:
        unpacked = stack.enter_context(tempfile.TemporaryFile())
        for chunk in chunks(path):
            unpacked.write(chunk)
        unpacked.seek(0)
        stack.pop_all()
    return unpacked
