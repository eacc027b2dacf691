"""Images to shards: prepared in parts by any number of processes, selected, merged, published."""

from morphem.ingest.engine import ingest
from morphem.ingest.outcome import IngestReport, RefusedError, StudyReport
from morphem.ingest.prepare import Preparation
from morphem.ingest.settings import IngestSettings

__all__ = ["IngestReport", "IngestSettings", "Preparation", "RefusedError", "StudyReport", "ingest"]
