"""A linear classifier on frozen features: logistic regression on standardised features."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.callbacks.probe import Probe
from morphem.errors import ConfigError


class LinearProbe(Probe):
    """Score the exported encoder by multinomial logistic regression; see `Probe` for the other arguments.

    Features are standardised by the rows to learn from; L-BFGS starts at zero, so nothing is random.

    Args:
        data: Labelled shards.
        label: Column to predict.
        penalty: Strength of the L2 penalty, above 0: the sum of squared weights is added to the summed loss times
            penalty / 2. 1 is scikit-learn's default.
        kwargs: As `Probe` takes them.

    Raises:
        ConfigError: If a setting is out of range or without effect.
    """

    kind = "linear"

    def __init__(self, data: str, label: str, *, penalty: float = 1.0, **kwargs: Any) -> None:
        super().__init__(data, label, **kwargs)
        if not penalty > 0:
            raise ConfigError(f"LinearProbe: penalty={penalty} has to be above 0.")
        self.penalty = penalty

    def predict(
        self, train: NDArray[np.float32], classes: NDArray[np.int64], test: NDArray[np.float32], n_classes: int
    ) -> NDArray[np.int64]:
        """Fit logistic regression and predict."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
        scale = np.where(std > 0, std, 1.0)
        model = LogisticRegression(C=1.0 / self.penalty, max_iter=2000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 2000 steps are enough for a probe
            model.fit((train - mean) / scale, classes)
        predicted: NDArray[np.int64] = model.predict((test - mean) / scale)
        return predicted
