"""Synthetic microscopy: studies on plates with known answers, for the first run, for tests, and for experiments.

Example:
    >>> from morphem.data.synthetic import default_studies, generate_image
    >>> study = default_studies()[0]
    >>> image = generate_image(study, next(study.fields()))
    >>> len(image.planes), image.planes[0].shape
    (5, (192, 192))
"""

from morphem.data.synthetic.sample import SAMPLES, default_studies, sample_root, write_sample
from morphem.data.synthetic.scene import Phenotype
from morphem.data.synthetic.stains import STAINS
from morphem.data.synthetic.study import UNTREATED, Field, SyntheticStudy, Treatment, generate_image

__all__ = [
    "SAMPLES",
    "STAINS",
    "UNTREATED",
    "Field",
    "Phenotype",
    "SyntheticStudy",
    "Treatment",
    "default_studies",
    "generate_image",
    "sample_root",
    "write_sample",
]
