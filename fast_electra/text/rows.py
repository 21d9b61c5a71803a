"""The documents of a parquet file: one for each row."""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fast_electra.settings import UserError
from fast_electra.streams import StreamError, chunks, packing
from fast_electra.text.documents import Document, Rejected, decoded, find, missing, of_value, reject

_AGAIN = "fetch or write the file again"


def read_rows(path: Path, field: str) -> Iterator[Document | Rejected]:
    """Yield one document for each row. A row group that cannot be read is rejected; those after it are still read."""
    import pyarrow as arrow
    from pyarrow import parquet

    broken = (arrow.ArrowException, OSError, ValueError)
    size = path.stat().st_size
    # A packed file is unpacked to a nameless one first, because parquet is read from its end.
    with tempfile.TemporaryFile() if packing(path) else path.open("rb") as stream:
        try:
            if packing(path):
                stream.writelines(chunks(path))
                stream.seek(0)
        except StreamError as error:
            yield reject(str(path), error.reason, str(error), _AGAIN, size=size)
            return
        except OSError as error:  # of the nameless file
            with suppress(OSError):
                stream.close()  # here, because closing it tries to write once more
            room = f"no room in {tempfile.gettempdir()} to unpack {path} ({error.strerror})"
            raise UserError(f"{room}: set TMPDIR to a folder with more, or unpack the file yourself") from None
        try:
            # By default pyarrow reads a whole row group ahead, and that may be the whole file.
            file = parquet.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
        except broken as error:
            yield reject(str(path), "unreadable parquet", str(error), _AGAIN, size=size)
            return
        columns = _tree(file.schema_arrow)
        keys = find(columns, field)
        if keys is None:
            rows = file.metadata.num_rows
            yield missing(str(path), field, columns, f"{rows:,} rows", documents=max(rows, 1), size=size)
            return
        row = 1
        for group in range(file.num_row_groups):
            metadata = file.metadata.row_group(group)
            next_row = row + metadata.num_rows
            try:
                for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[field]):
                    yield from _cells(_column(batch, keys), path, row, field)
                    row += batch.num_rows
            except broken as error:
                text, lost = f"rows {row} to {next_row - 1}: {error}", next_row - row
                packed = metadata.total_byte_size * lost // metadata.num_rows
                yield reject(f"{path}:{row}", "unreadable parquet", text, _AGAIN, documents=lost, size=packed)
            row = next_row


def _tree(fields: Any) -> dict[str, Any]:
    """Return the names of the columns. The value of a struct is the tree of its fields, and of others None."""
    import pyarrow as arrow

    return {field.name: _tree(field.type) if arrow.types.is_struct(field.type) else None for field in fields}


def _column(batch: Any, keys: list[str]) -> Any:
    """Return the column to which the keys lead. Where a struct is null, its fields are null."""
    from pyarrow import compute

    column = batch.column(batch.schema.names.index(keys[0]))
    return compute.struct_field(column, keys[1:]) if keys[1:] else column


def _cells(column: Any, path: Path, row: int, field: str) -> Iterator[Document | Rejected]:
    """Yield the documents of a column. Strings are read as bytes, so that broken UTF-8 costs one row, not a batch."""
    import pyarrow as arrow

    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
        column = column.cast(arrow.large_binary())
    for number, value in enumerate(column.to_pylist(), start=row):
        source = f"{path}:{number}"
        yield decoded(value, source) if isinstance(value, bytes) else of_value(value, source, field, str(value))
