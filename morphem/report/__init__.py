"""The report of an ingest: one page that shows what is in a shard set, and what was odd about it."""

from morphem.report.write import write_report

__all__ = ["write_report"]
