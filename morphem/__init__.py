"""morphem: a model zoo for pictures of cells."""
