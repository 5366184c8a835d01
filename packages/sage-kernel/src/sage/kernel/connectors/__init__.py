"""Sources and sinks that come with the kernel; plans refer to them by name, `registry.BUILT_IN` has the
names.

A library that only one of them needs is imported when it is set up.
"""

from sage.kernel.connectors.console import Stdout, items
from sage.kernel.connectors.delimited import Csv, CsvFile
from sage.kernel.connectors.folder import Document, Files
from sage.kernel.connectors.http import HttpLines, HttpPages, HttpPost
from sage.kernel.connectors.jsonl import Jsonl, JsonlFile
from sage.kernel.connectors.kafka_sink import KafkaSink
from sage.kernel.connectors.kafka_source import KafkaMessage, KafkaSource, kafka_timestamp
from sage.kernel.connectors.lines import Lines, LinesFile
from sage.kernel.connectors.parquet import Parquet, ParquetFolder
from sage.kernel.connectors.plain import to_json
from sage.kernel.connectors.queues import QueueSink, QueueSource
from sage.kernel.connectors.sql import Sql, SqlTable

__all__ = [
    "Csv",
    "CsvFile",
    "Document",
    "Files",
    "HttpLines",
    "HttpPages",
    "HttpPost",
    "Jsonl",
    "JsonlFile",
    "KafkaMessage",
    "KafkaSink",
    "KafkaSource",
    "Lines",
    "LinesFile",
    "Parquet",
    "ParquetFolder",
    "QueueSink",
    "QueueSource",
    "Sql",
    "SqlTable",
    "Stdout",
    "items",
    "kafka_timestamp",
    "to_json",
]
