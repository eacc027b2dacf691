"""From microscope files to features, on real studies with one to six channels, through the commands alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from morphem.cli import main
from morphem.data.shards import ShardSet
from morphem.features import read

STUDIES = ("bbbc014-nfkb", "bbbc016-transfluor", "nf1-schwann", "imc-mock", "pca-br00143976", "moffat-human")

pytestmark = pytest.mark.slow


def test_ingest_fit_embed_and_probe(real_data: Path, tmp_path: Path, tiny_run: Callable[..., str]) -> None:
    shards = tmp_path / "shards"
    assert main(["ingest", *(str(real_data / study) for study in STUDIES), "--output", str(shards)]) == 0
    table = ShardSet(str(shards)).table(["experiment.study", "geometry.channels"]).to_pandas()
    assert sorted(table["experiment.study"].unique()) == sorted(STUDIES)
    assert sorted(table["geometry.channels"].unique()) == [1, 2, 3, 5, 6]

    config = tiny_run(
        root=str(shards), **{"batch_size: 4": "batch_size: 16\n  default_scale: 96\n  samples_per_epoch: 64"}
    )
    probe = f"{{class_path: LinearProbe, init_args: {{data: {shards}, label: label, aggregate: image, "
    probe += "query: \"experiment.study == 'bbbc016-transfluor'\"}}"
    assert main(["fit", "--config", config, "--trainer.callbacks+", probe]) == 0
    metrics = (tmp_path / "runs/run/version_0/metrics.csv").read_text()
    assert "probe/linear/label" in metrics

    features = tmp_path / "features.parquet"
    query = ["--query", "experiment.study == 'bbbc016-transfluor'", "--aggregate", "image"]
    query += ["--unit", "tile", "--tile-size-px", "224"]  # whole fields, shrunk to a few pixels, would lose the spots
    run = str(tmp_path / "runs/run/version_0")
    assert main(["embed", "--model", run, "--data", str(shards), "--output", str(features), *query]) == 0
    rows = read(features)
    assert len(rows.values) == 48
    assert np.isfinite(rows.values).all()
    assert rows.metadata["Metadata_Well"].nunique() == 24

    clear = rows.metadata["Metadata_label"].isin(["internalised", "diffuse"]).to_numpy()
    scores = cross_val_score(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        rows.values[clear],
        rows.metadata.loc[clear, "Metadata_label"],
        groups=rows.metadata.loc[clear, "Metadata_Well"],
        cv=GroupKFold(4),
        scoring="balanced_accuracy",
    )
    assert scores.mean() > 0.6  # spots or none, chance is 0.5; well-wise folds
