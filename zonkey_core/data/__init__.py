"""Text to learn from: documents as bytes, shuffled, streamed and resumable.

`open_stream` turns a `SourceSpec` into a `DocumentStream`; `zonkey_core.data.rows` packs that into batches of rows.
Importing this package is cheap: readers of files and of the Hugging Face hub are loaded when they are first used.
"""

from zonkey_core.data.spec import SourceSpec
from zonkey_core.data.stream import DocumentStream, open_stream

__all__ = ["DocumentStream", "SourceSpec", "open_stream"]
